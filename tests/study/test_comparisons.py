"""What a study's table says of runs whose transcripts are made up: languages, speakers, groups, primary contrasts, verdicts."""

import gzip
import json

import numpy as np
import pytest

from workbench.core.errors import UserError
from workbench.evaluation.comparison import PairedHypotheses, difference_over_seeds
from workbench.study.plan import Study, Trial
from workbench.study.report import comparisons_of, read_kept
from workbench.study.results import compare, verdict

WORDS = ["one two three", "four five six", "seven eight nine", "ten eleven twelve"]


def clips(english=20, spanish=40):
    languages = ["en"] * english + ["es"] * spanish
    return {
        "ids": [str(i) for i in range(len(languages))],
        "references": [f"{WORDS[i % 4]} number {i}" for i in range(len(languages))],
        "languages": languages,
        "speakers": [f"{code}{i % 10}" for i, code in enumerate(languages)],
    }


def result(wrong, seed):
    """Of each language the first `wrong` clips are empty, and one more for odd seeds."""
    said = clips()
    hypotheses = list(said["references"])
    for code, count in wrong.items():
        those = [i for i, language in enumerate(said["languages"]) if language == code]
        for i in those[: count + seed % 2]:
            hypotheses[i] = ""
    scores = {"wer": 1.0, "cer": 1.0}
    return {"test": {**said, "hypotheses": hypotheses}, "validation": scores, "seconds": {"training": 1, "look_ahead": 0},
            "peak_mb": 1.0, "host": {}, "steps": 1, "inputs": {}}  # fmt: skip


def a_study(**changes):
    content = {
        "output": "runs/x", "recipe": {}, "corpora": ["c"], "seeds": [1, 2, 3, 4], "baseline": "constant",
        "average_over": "languages", "groups": {"strong": ["en"], "weak": ["es"]}, "margin": 0.5,
        "arms": {"constant": {}, "adakd": {}, "permuted": {}},
        "comparisons": {"adakd": ["permuted"]},
        "primary": [{"arm": "adakd", "against": "permuted", "corpus": "c"}], **changes,
    }  # fmt: skip
    return Study.model_validate(content)


@pytest.fixture
def table():
    arms = {"constant": {"en": 2, "es": 20}, "adakd": {"en": 2, "es": 4}, "permuted": {"en": 2, "es": 20}}
    found = {Trial("student", "c", arm, s): result(wrong, s) for arm, wrong in arms.items() for s in (1, 2, 3, 4)}
    return compare(a_study(), found, {"c": {**clips(), "hypotheses": clips()["references"], "name": "t"}}, "12", "x")


def row_of(table, name, group="all"):
    return next(row for row in table["arms"] if (row["name"], row["group"]) == (name, group))


def test_each_language_counts_alike_and_groups_have_rows_of_their_own(table):
    both, strong, weak = (row_of(table, "adakd", group) for group in ("all", "strong", "weak"))
    assert np.allclose(both["cer"], (np.array(strong["cer"]) + np.array(weak["cer"])) / 2, atol=1e-3)
    versus = weak["vs_constant"]["delta_cer"]
    assert versus < -30
    assert strong["vs_constant"]["delta_cer"] == 0
    assert both["vs_constant"]["delta_cer"] == pytest.approx(versus / 2, abs=1e-3)
    assert {(t["group"], t["cer"]) for t in table["teacher"]} == {("all", 0.0), ("strong", 0.0), ("weak", 0.0)}


def test_the_primary_contrast_is_judged_and_shown(table):
    (found,) = table["primary"]
    assert (found["arm"], found["against"], found["shows"]) == ("adakd", "permuted", "gain")
    assert found["p_holm_cer"] == pytest.approx(found["p_cer"])  # one primary contrast
    shown = comparisons_of(a_study(), table)
    assert ("c", "all", "adakd", "permuted") in [row[:4] for row in shown]
    assert [row[-1] for row in shown].count("gain") == 1


def test_a_primary_contrast_that_has_not_run_still_counts_in_the_adjustment():
    arms = {"constant": {"es": 20}, "adakd": {"es": 17}, "permuted": {"es": 20}}
    found = {Trial("student", "c", arm, s): result(wrong, s) for arm, wrong in arms.items() for s in (1, 2, 3, 4)}
    primary = [{"arm": "adakd", "against": other, "corpus": "c"} for other in ("permuted", "later")]
    study = a_study(arms={**a_study().arms, "later": {}}, primary=primary)
    (one,) = compare(study, found, {}, "12", "x")["primary"]
    assert one["p_holm_cer"] == pytest.approx(min(1, 2 * one["p_cer"]))


@pytest.mark.parametrize(
    ("interval", "interval_90", "p", "said"),
    [
        ([-2.0, -0.1], [-1.8, -0.3], 0.03, "gain"),
        ([-2.0, -0.1], [-1.8, -0.3], 0.09, "undecided"),  # significant alone, not among all
        ([0.1, 2.0], [0.3, 1.8], 0.03, "no gain"),
        ([-0.6, 0.3], [-0.49, 0.2], 0.5, "no gain"),  # equivalent
        ([-0.7, 0.3], [-0.6, 0.2], 0.5, "undecided"),
    ],
)
def test_the_verdict_follows_the_protocol(interval, interval_90, p, said):
    found = {"interval": interval, "interval_90": interval_90, "p_holm_cer": p, "seeds_compared": 3}
    assert verdict(found, 0.5) == said
    assert verdict({**found, "seeds_compared": 1}, 0.5) == "undecided"


def test_clips_of_one_speaker_are_drawn_together():
    """Errors that all come from one voice of ten: the interval over speakers is wider than over clips, and is the closed form's."""
    references = ["a b c d e f g h i j"] * 100
    speakers = [str(i // 10) for i in range(100)]
    ours = [["" if i < 10 else text for i, text in enumerate(references)]]
    over_clips = difference_over_seeds([PairedHypotheses(references, ours, [references])], "wer")
    over_speakers = difference_over_seeds([PairedHypotheses(references, ours, [references], speakers=speakers)], "wer")
    assert over_clips["points"] == over_speakers["points"] == 10

    def width(found):
        return found["ci"][1] - found["ci"][0]

    assert width(over_speakers) > 2.5 * width(over_clips)
    # the mean of ten values, one 100 and nine 0: standard error 10, Student's t with nine degrees of freedom
    assert width(over_speakers) == pytest.approx(2 * 2.2622 * 10, rel=0.05)
    assert over_speakers["ci_90"][1] - over_speakers["ci_90"][0] == pytest.approx(2 * 1.8331 * 10, rel=0.05)


def test_what_is_published_gives_the_same_table_from_several_files(tmp_path, table):
    """The rows of `kept_rows`, split over two files as a study that goes on in another session writes them."""
    arms = {"constant": {"en": 2, "es": 20}, "adakd": {"en": 2, "es": 4}, "permuted": {"en": 2, "es": 20}}
    said = clips()
    for seeds in ((1, 2), (3, 4)):
        rows = [{"corpus": "c", "split": "test", "clips": said}]
        for arm, wrong in arms.items():
            for s in seeds:
                run = result(wrong, s)
                kept = {key: run[key] for key in ("validation", "seconds", "peak_mb", "steps", "host", "inputs")}
                trial = Trial("student", "c", arm, s)
                rows.append({**trial.__dict__, "hypotheses": run["test"]["hypotheses"], **kept})
        rows.append({"corpus": "c", "teacher": "t", "hypotheses": said["references"]})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{seeds[0]}.gz").write_bytes(gzip.compress(lines.encode()))
    found, teachers = read_kept([tmp_path / "1.gz", tmp_path / "3.gz"])
    again = compare(a_study(), found, teachers, "12", "x")
    assert again["arms"] == table["arms"]
    assert again["primary"] == table["primary"]
    other = {"corpus": "c", "split": "test", "clips": {**said, "references": ["another"] * 60}}
    (tmp_path / "other.gz").write_bytes(gzip.compress((json.dumps(other) + "\n").encode()))
    with pytest.raises(UserError, match="other clips of c"):
        read_kept([tmp_path / "1.gz", tmp_path / "other.gz"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"comparisons": {"adakd": ["permutd"]}}, "comparisons 'permutd' is not an arm"),
        ({"primary": [{"arm": "adakd", "against": "none", "corpus": "c"}]}, "primary 'none' is not an arm"),
        ({"primary": [{"arm": "adakd", "against": "permuted", "corpus": "d"}]}, "not among the study's"),
    ],
)
def test_arms_that_do_not_exist_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        a_study(**changes)


def test_a_corpus_that_is_only_tested_on_counts_every_run_as_a_seed(tmp_path):
    study = a_study(corpora=["a", "b"], test_also=["strangers"], primary=[], groups={}, comparisons={})
    found = {}
    for arm, wrong in {"constant": 20, "adakd": 4}.items():
        for corpus in study.corpora:
            for s in (1, 2):
                run = result({"en": 2}, s)
                found[Trial("student", corpus, arm, s)] = {
                    **run,
                    "test_also": {"strangers": result({"es": wrong}, s)["test"]},
                }
    table = compare(study, found, {}, "8", "x")
    row = next(r for r in table["arms"] if (r["name"], r["corpus"]) == ("adakd", "strangers"))
    assert row["seeds"] == [1, 2, 3, 4]
    assert row["vs_constant"]["seeds_compared"] == 4
    assert row["vs_constant"]["delta_cer"] < -10
    assert next(r for r in table["arms"] if (r["name"], r["corpus"]) == ("adakd", "a"))["vs_constant"]["delta_cer"] == 0


def test_a_looping_clip_is_wholly_wrong_and_no_more_where_errors_are_capped():
    study = a_study(cap_errors=True, groups={}, comparisons={}, primary=[], seeds=[1])
    found = {}
    for arm in ("constant", "adakd"):
        run = result({}, 2)
        run["test"]["hypotheses"] = list(run["test"]["references"])
        found[Trial("student", "c", arm, 1)] = run
    looping = found[Trial("student", "c", "adakd", 1)]["test"]
    looping["hypotheses"][0] = "so and so on " * 100
    row = row_of(compare(study, found, {}, "2", "x"), "adakd")
    versus = row["vs_constant"]
    # one clip of twenty of equal weight in one of two languages
    share = len(clips()["references"][0]) / sum(len(text) for text in clips()["references"][:20])
    assert row["cer_capped"][0] == versus["delta_cer"] == pytest.approx(100 * share / 2, rel=0.01)
    assert versus["delta_cer_uncapped"] == row["cer"][0] > 10 * versus["delta_cer"]
    assert row["loops"] == [1.0]


def test_a_language_with_one_speaker_draws_clips_and_never_says_zero_variance():
    references = [f"word {i} and more" for i in range(30)]
    ours = [[text if i % 3 else "" for i, text in enumerate(references)]]
    alone = difference_over_seeds([PairedHypotheses(references, ours, [references], speakers=["a"] * 30)])
    over_clips = difference_over_seeds([PairedHypotheses(references, ours, [references])])
    assert alone == over_clips
    assert alone["ci"][0] < alone["points"] < alone["ci"][1]
    single = difference_over_seeds([PairedHypotheses(["word"], [[""]], [["word"]])], fewest_clips=1)
    assert (single["ci"], single["p"]) == (None, None)


def test_a_group_without_clips_has_no_row_and_unknown_languages_are_refused(table):
    study = a_study(groups={"strong": ["en"], "absent": ["ta"]})
    found = {Trial("student", "c", arm, s): result({}, s) for arm in study.arms for s in (1, 2)}
    teachers = {"c": {**clips(), "hypotheses": clips()["references"], "name": "t"}}
    rows = compare(study, found, teachers, "6", "x")
    assert {row["group"] for row in rows["arms"]} == {"all", "strong"} == {row["group"] for row in rows["teacher"]}
    for groups, said in (
        ({"all": ["en"]}, "choose another"),
        ({"strong": ["xx"]}, "xx"),
        ({"strong": ["english"]}, "'en'"),
    ):
        with pytest.raises(ValueError, match=said):
            a_study(groups=groups)
    with pytest.raises(ValueError, match="which runs are trained on"):
        a_study(test_also=["c"])


def test_corpora_of_the_same_clips_are_not_averaged():
    study = a_study(corpora=["clean", "noisy"], primary=[])
    found = {Trial("student", corpus, arm, 1): result({}, 1) for arm in study.arms for corpus in study.corpora}
    assert not [row for row in compare(study, found, {}, "6", "x")["arms"] if "corpora" in row]
    for trial, run in found.items():
        run["test"]["ids"] = [f"{trial.corpus} {name}" for name in run["test"]["ids"]]
    assert len([row for row in compare(study, found, {}, "6", "x")["arms"] if "corpora" in row]) == len(study.arms)


def test_a_primary_contrast_shows_nothing_before_all_its_seeds_are_done_and_one_with_the_baseline_is_listed():
    study = a_study(primary=[{"arm": "adakd", "against": "constant", "corpus": "c"}], comparisons={})
    arms = {"constant": {"es": 20}, "adakd": {"es": 4}, "permuted": {"es": 20}}
    found = {Trial("student", "c", arm, s): result(wrong, s) for arm, wrong in arms.items() for s in (1, 2, 3, 4)}
    early = compare(study, {t: r for t, r in found.items() if t.seed < 4}, {}, "9", "x")
    assert early["primary"][0]["shows"] == "not all seeds yet"
    late = compare(study, found, {}, "12", "x")
    assert late["primary"][0]["shows"] == "gain"
    assert ("adakd", "constant", "gain") in [(row[2], row[3], row[-1]) for row in comparisons_of(study, late)]
