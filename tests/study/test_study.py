"""A study from its file to its table, on the tiny model; its statistics against cases with a known answer."""

import gzip
import json
import os
import queue
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

from workbench.config.shipped import shipped_files
from workbench.core.errors import UserError
from workbench.evaluation.comparison import PairedHypotheses, difference_over_seeds, holm
from workbench.study import runner
from workbench.study.plan import Trial, arm_recipe, folder_of, load_study, trials
from workbench.study.runner import shared_out


@pytest.fixture
def study(tiny_checkpoint, cache, speech, tmp_path):
    def write(**changes):
        content = {
            "output": str(tmp_path / "study"),
            "recipe": {
                "teacher": str(tiny_checkpoint),
                "student": {"decoder_layers": [0, 2]},
                "targets": {"top_k": 8, "allow_large_tail": True},
                "stages": {
                    "decoder": {"trainable": "decoder", "epochs": 1, "learning_rate": 1e-3, "batch_seconds": 6.0}
                },
            },
            "corpora": [str(speech())],
            "seeds": [1, 2],
            "arms": {
                "fixed_kd": {"stages.decoder.weighting": {"name": "fixed"}},
                "adakd": {"stages.decoder.weighting": {"name": "adakd"}},
            },
            **changes,
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def workbench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "workbench", "study", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_a_study_runs_resumes_and_makes_its_table(study, tmp_path):
    path = study()
    first = workbench(
        path, "--arm", "fixed_kd", "--seed", "1", "--corpus", load_study(path).corpora[0], "--student", "student"
    )
    assert first.returncode == 0, first.stderr
    (result,) = (tmp_path / "study").rglob("result.json")
    before = result.stat().st_mtime_ns
    whole = workbench(path, "--parallel", "2")
    assert whole.returncode == 0, whole.stderr
    assert "1 of 4 runs are done" in whole.stderr
    assert result.stat().st_mtime_ns == before
    assert not list((tmp_path / "study").rglob("student/model.safetensors"))
    found = json.loads((tmp_path / "study" / "study.json").read_text())
    rows = {row["name"]: row for row in found["arms"]}
    assert rows["adakd"]["seeds"] == [1, 2]
    versus = rows["adakd"]["vs_fixed_kd"]
    difference = np.mean(rows["adakd"]["cer"]) - np.mean(rows["fixed_kd"]["cer"])
    assert versus["delta_cer"] == pytest.approx(difference, abs=0.01)
    assert versus["interval"] is None  # a handful of clips
    assert "too few clips to say" in (tmp_path / "study" / "study.md").read_text()
    assert rows["fixed_kd"]["peak_mb"] > 100
    assert found["teacher"][0]["wer"] >= 0
    assert rows["adakd"]["vs_teacher"]["delta_wer"] == pytest.approx(
        np.mean(rows["adakd"]["wer"]) - found["teacher"][0]["wer"], abs=0.01
    )
    with gzip.open(tmp_path / "study" / "hypotheses.jsonl.gz", "rt") as file:
        kept = [json.loads(line) for line in file]
    assert len(kept) == 1 + 4 + 1  # the clips, the runs, the teacher
    assert kept[-1]["teacher"] == found["teacher"][0]["name"]
    assert len(kept[0]["clips"]["references"]) == len(kept[1]["hypotheses"]) == 6
    page = (tmp_path / "study" / "study.html").read_text()
    assert "adakd" in page
    assert (tmp_path / "study" / "study.md").read_text().count("\n|adakd|") == 1
    assert not re.search("<script|https?:", page)
    assert page.count("<svg") == 1
    again = workbench(path, "--table")
    assert again.returncode == 0
    assert "fixed_kd" in again.stdout


@pytest.mark.slow
def test_a_failing_arm_does_not_stop_the_others_and_is_named(study, tmp_path):
    arms = {
        "fixed_kd": {},
        "broken": {"stages.decoder.weighting": {"name": "askd", "self_teacher": "intermediate", "student_layer": 7}},
        "pure": {"stages.decoder.weighting": {"name": "fixed", "alpha": 1.0}},
    }
    found = workbench(study(arms=arms, seeds=[1]))
    assert found.returncode == 2
    assert "1 of 3 runs failed (" in found.stderr
    assert "broken/seed-1: error: " in found.stderr
    assert "Traceback" not in found.stderr
    assert len(list((tmp_path / "study").rglob("result.json"))) == 2
    log = next((tmp_path / "study").rglob("broken/seed-1/log.txt")).read_text()
    assert "one before the last" in log
    table = workbench(tmp_path / "study.yaml", "--table")
    assert table.returncode == 0
    assert "broken/seed-1 has begun and is not finished: error: " in table.stderr


def test_arms_share_everything_but_their_overrides(study):
    parsed = load_study(study())
    corpus = parsed.corpora[0]
    one, other = (arm_recipe(parsed, Trial("student", corpus, arm, 2)) for arm in ("fixed_kd", "adakd"))
    differing = {k for k, v in one.model_dump().items() if v != other.model_dump()[k]}
    assert differing == {"output", "stages"}
    assert one.seed == other.seed == 2
    assert trials(parsed)[0].arm == "fixed_kd"


def test_corpora_with_one_file_name_have_folders_of_their_own():
    assert folder_of("prompts-es") == "prompts-es"
    names = {folder_of(corpus) for corpus in ("a/manifest.jsonl", "b/manifest.jsonl", "hf:org/name", "..")}
    assert len(names) == 4
    assert all("/" not in name and name != ".." for name in names)


def test_every_run_is_one_command(study):
    path = study()
    found = workbench(path, "--commands")
    lines = found.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"workbench study {path} --student student --corpus") for line in lines)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"baseline": "fixd_kd"}, "did you mean 'fixed_kd'"),
        ({"arms": {"fixed_kd": {"stages.decoder.weighting": {"name": "adakb"}}}}, "did you mean 'adakd'"),
        ({"arms": {"fixed_kd": {"stages.decoder.learning_rat": 1}}}, "did you mean 'learning_rate'"),
        ({"seed": [1]}, "did you mean 'seeds'"),
        ({"corpora": []}, "corpora"),
        ({"arms": {"fixed_kd": {}, "../elsewhere": {}}}, "becomes a folder"),
    ],
)
def test_wrong_studies_are_said_before_anything_runs(study, changes, said):
    with pytest.raises(UserError, match=said):
        load_study(study(**changes))


def test_the_shipped_studies_can_be_read():
    studies = [one.path for one in shipped_files() if one.is_study]
    assert len(studies) > 5
    for path in studies:
        assert trials(load_study(path))


REFERENCES = [
    f"clip number {i} says {w}"
    for i, w in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"] * 3)
]


def broken(share, seed):
    draw = np.random.default_rng(seed).random(len(REFERENCES))
    return [r if x > share else "nothing at all" for r, x in zip(REFERENCES, draw, strict=True)]


def test_the_difference_over_seeds_is_seen_and_that_of_equals_is_none():
    bad, good = [broken(0.9, s) for s in range(3)], [broken(0.2, s + 10) for s in range(3)]
    found = difference_over_seeds([PairedHypotheses(REFERENCES, good, bad)])
    assert found["points"] < 0
    assert found["ci"][1] < 0
    assert found["relative"] < -0.3
    same = difference_over_seeds([PairedHypotheses(REFERENCES, bad, bad)])
    assert same["points"] == 0
    assert same["ci"] == [0, 0]


def test_the_interval_over_seeds_is_wider_than_over_clips_alone():
    """One seed of three much worse: the chance of training belongs into the interval."""
    theirs = [broken(0.3, 1)] * 3
    ours = [broken(0.3, 1), broken(0.3, 1), broken(1.0, 2)]
    wide = difference_over_seeds([PairedHypotheses(REFERENCES, ours, theirs)], "wer")
    assert wide["ci"][0] <= 0 < wide["ci"][1]
    assert wide["points"] > 0
    # Student's t with two degrees of freedom: at least 4.3 standard errors of the seeds, where a percentile bootstrap stays within the seeds' range
    total = sum(len(r.split()) for r in REFERENCES)
    by_seed = [
        100 * sum(len(r.split()) for r, h in zip(REFERENCES, s, strict=True) if r != h) / total
        for s in (ours[0], ours[2])
    ]
    assert wide["ci"][1] - wide["points"] > 4.0 * abs(by_seed[1] - by_seed[0]) / 3


def test_the_interval_is_students_t_where_only_seeds_differ():
    """All clips alike, so that the clips' variance is zero: the closed form of a mean of three."""
    references = ["a b c d e f g h i j"] * 25
    theirs = [references] * 3
    ours = [[" ".join(r.split()[:-k]) for r in references] for k in (1, 2, 3)]  # 10, 20, 30 % deletions
    found = difference_over_seeds([PairedHypotheses(references, ours, theirs)], "wer")
    assert found["points"] == pytest.approx(20.0)
    assert found["ci"] == pytest.approx([20 - 4.30265 * 10 / 3**0.5, 20 + 4.30265 * 10 / 3**0.5], abs=1e-3)
    assert found["p"] == pytest.approx(0.0742, abs=1e-4)  # t = 3.4641 with two degrees of freedom


def test_few_clips_have_no_interval():
    few = REFERENCES[:19]
    found = difference_over_seeds([PairedHypotheses(few, [few] * 3, [["nothing"] * 19] * 3)], "wer")
    assert (found["ci"], found["p"]) == (None, None)
    assert found["points"] < 0


def test_holm_adjusts_by_the_number_of_comparisons():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5]) == [0.5]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_several_corpora_count_alike_whatever_their_size():
    bad, good = [broken(1.0, 1)], [REFERENCES]
    short = [r[:8] for r in REFERENCES]
    one = difference_over_seeds([PairedHypotheses(REFERENCES, good, bad)])["points"]
    none = difference_over_seeds([PairedHypotheses(short, [short], [short])])["points"]
    both = difference_over_seeds([PairedHypotheses(REFERENCES, good, bad), PairedHypotheses(short, [short], [short])])
    assert none == 0
    assert both["points"] == pytest.approx(one / 2, abs=0.01)


def test_runs_at_a_time_share_the_cores_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    assert shared_out(1) == [frozenset()]
    assert shared_out(2) == [{0, 1}, {2, 3}]
    assert shared_out(8) == [frozenset()] * 8  # more runs than cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin processes")
def test_a_run_stays_on_its_cores(study, monkeypatch, tmp_path):
    """The run's process is replaced by one that prints where it may run."""
    show = [
        sys.executable,
        "-c",
        "import os, time; time.sleep(0.5); print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])",
    ]
    monkeypatch.setattr(runner, "killed_with_parent", lambda _: show)
    parsed = load_study(study())
    (core,) = sorted(os.sched_getaffinity(0))[:1]
    free = queue.SimpleQueue()
    free.put(frozenset({core}))
    trial = trials(parsed)[0]
    assert runner._run(parsed, tmp_path / "study.yaml", trial, 2, free) == 0
    assert (parsed.output / trial.name / "log.txt").read_text() == f"[{core}] 1\n"
    assert free.get() == {core}
