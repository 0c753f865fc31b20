"""What is published of studies D and E comes from the kept transcripts and nothing else."""

import json

import pytest

from tests.conftest import ROOT, load_script
from workbench.config.shipped import FOLDER
from workbench.core.errors import UserError
from workbench.evaluation.comparison import mean_over_folds
from workbench.study.plan import load_study

RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def script():
    return load_script("study_results")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "files"), [("d", "seed-*"), ("e", "folds-*")])
def test_the_published_figures_are_what_the_script_computes(script, monkeypatch, name, files):
    monkeypatch.chdir(ROOT)
    kept = sorted((RESULTS / "studies" / name).glob(f"{files}.hypotheses.jsonl.gz"))
    assert kept
    file = FOLDER / "studies" / name / "study.yaml"
    found, _ = script.results(load_study(file), file, kept)
    published = json.loads((RESULTS / f"study_{name}.json").read_text("utf-8"))
    for key in ("primary", "hypothesis_4", "arms", "teacher", "by_language", "primary_runs_missing", "runs"):
        assert json.loads(json.dumps(found[key])) == published[key], key
    assert json.loads(json.dumps(found["over_folds"])) == published.get("over_folds", [])
    assert bool(found["over_folds"]) == (name == "e")


def test_differences_over_folds_are_paired_by_fold(script):
    study = load_study(FOLDER / "studies" / "e" / "study.yaml")
    cer = {
        "alpha_0": [10.0, 12.0, 14.0],
        "alpha_0.5": [9.0, 12.0, 12.0],
        "askd": [9.0, 10.0, 15.0],
        "jsd": [1.0, 2.0],
    }
    rows = [
        {"name": arm, "corpus": corpus, "group": "all", "cer_capped": [value]}
        for arm, values in cer.items()
        for corpus, value in zip(study.corpora, values, strict=False)
    ]
    rows += [
        {"name": "askd", "corpus": study.corpora[3], "group": "all", "cer_capped": [99.0]}
    ]  # which the others lack
    found = {row["arm"]: row for row in script.over_folds(study, rows)}
    assert found["askd"]["folds"] == study.corpora[:4]
    assert found["askd"]["mean"] == 33.25
    # of -1, -2 and 1: the mean -2/3, the standard deviation 1.5275, t of two degrees of freedom 4.3027
    half = 4.3027 * 1.5275 / 3**0.5
    assert found["askd"]["vs_baseline"]["arm"] == "alpha_0"
    assert found["askd"]["vs_baseline"]["folds"] == 3  # those that both have
    assert found["askd"]["vs_baseline"]["delta_cer"] == pytest.approx(-2 / 3, abs=1e-3)
    assert found["askd"]["vs_baseline"]["interval"] == pytest.approx([-2 / 3 - half, -2 / 3 + half], abs=2e-3)
    assert found["askd"]["vs_best_constant"]["arm"] == "alpha_0.5"  # and not jsd, which has another divergence
    assert "vs_alpha_0.5" not in found["askd"]
    jsd = {"arm": "alpha_0.5", "folds": 2, "delta_cer": -9.0}
    assert found["jsd"]["vs_alpha_0.5"] == jsd | {"interval": None}  # of two folds
    assert script.over_folds(load_study(FOLDER / "studies" / "d" / "study.yaml"), rows) == []
    assert mean_over_folds([1.0, 2.0]) == (1.5, None)


def test_transcripts_without_the_teachers_and_of_an_earlier_form_are_refused(script):
    file = FOLDER / "studies" / "d" / "tune.yaml"
    with pytest.raises(UserError, match="no transcripts of the teacher"):
        script.results(load_study(file), file, [RESULTS / "studies" / "d" / "tune.hypotheses.jsonl.gz"])
    with pytest.raises(UserError, match="earlier version"):
        script.results(load_study(file), file, [RESULTS / "study_a.hypotheses.jsonl.gz"])


def test_few_languages_have_no_correlation_and_many_have_the_rank_correlation(script):
    rows = [
        {
            "student": "s",
            "corpus": "c",
            "arm": "adakd",
            "language": str(i),
            "teacher_cer": float(i),
            "delta_cer": -(i**2),
        }
        for i in range(10)
    ]
    (found,) = script.correlations(rows)
    assert (found["spearman"], found["languages"]) == (1.0, 10)
    assert script.correlations(rows[:4]) == []
    (against,) = script.correlations([{**row, "delta_cer": row["teacher_cer"]} for row in rows])
    assert against["spearman"] == -1.0  # the gain is what is subtracted from the baseline
