"""What is published of studies D and E comes from the kept transcripts and nothing else."""

import json

import pytest

from tests.conftest import ROOT, load_script
from workbench.config.shipped import FOLDER
from workbench.core.errors import UserError
from workbench.study.plan import load_study

RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def script():
    return load_script("study_results")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["d"])
def test_the_published_figures_are_what_the_script_computes(script, monkeypatch, name):
    monkeypatch.chdir(ROOT)
    kept = sorted((RESULTS / "studies" / name).glob("seed-*.hypotheses.jsonl.gz"))
    assert kept
    file = FOLDER / "studies" / name / "study.yaml"
    found, _ = script.results(load_study(file), file, kept)
    published = json.loads((RESULTS / f"study_{name}.json").read_text("utf-8"))
    for key in ("primary", "hypothesis_4", "arms", "teacher", "by_language", "primary_runs_missing", "runs"):
        assert json.loads(json.dumps(found[key])) == published[key], key


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
