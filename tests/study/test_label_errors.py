"""The label-error finder: its ranking, its figures against hand-counted ones, its page; on the tiny model's run."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.conftest import DECODER, ROOT
from workbench.cli.app import app
from workbench.core.errors import UserError
from workbench.corpus.corrupt import write_corrupted
from workbench.corpus.manifests import read_manifest
from workbench.study.label_errors import RunWeights, ranked, read_run, retrieval
from workbench.training.trainer import distill


def test_retrieval_by_hand():
    scores = {"a": (0.9, 0.0), "b": (0.8, 0.0), "c": (0.7, 0.0), "d": (0.1, 0.0)}
    found = retrieval(scores, {"a", "c"})
    assert found["precision"] == found["recall"] == 0.5  # of the first two, one
    assert found["average_precision"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found["chance"] == 0.5
    assert retrieval(scores, {"a", "b"})["average_precision"] == 1.0
    assert ranked({"x": (1.0, 0.0), "b": (2.0, 0.0), "a": (1.0, 0.0), "w": (1.0, 3.0)}) == ["b", "w", "a", "x"]


def run_of(recipe, task_weight, task):
    """Three utterances seen in three epochs; only the last counts for a ranking."""
    step = np.repeat([1.0, 2.0, 3.0], 3)
    columns = {"step": step, "task_weight": np.array(task_weight, float), "task": np.array(task, float),
               "alpha": 1 - np.array(task_weight, float), "teacher_loss": np.tile([0.1, 2.0, 1.0], 3)}  # fmt: skip
    return RunWeights(recipe.output, recipe, "decoder", ["a", "b", "c"] * 3, columns)


def test_the_ranking_is_by_the_late_weight_or_else_by_the_loss(recipe):
    parsed = recipe()
    weighed = run_of(parsed, [0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.9, 0.2, 0.6], [1] * 9)
    scores, basis = weighed.distrust()
    assert ranked(scores) == ["b", "c", "a"]
    assert "weight" in basis
    assert ranked(weighed.distrust("teacher_loss")[0]) == ["b", "c", "a"]
    even = run_of(parsed, [0.5] * 9, [9, 9, 9, 9, 9, 9, 1, 2, 3])
    scores, basis = even.distrust()
    assert ranked(scores) == ["c", "b", "a"]
    assert "weights all labels alike" in basis
    steps, lines = weighed.over_time("alpha")
    assert len(steps) == 3
    assert [line[-1] for line in lines if line[-1] == line[-1]] == pytest.approx([0.1, 0.4, 0.8])  # easiest first


def test_the_command_shows_a_run_and_how_right_it_is(recipe, speech, tmp_path):
    noisy = write_corrupted(read_manifest(speech()), 0.5, "exchange", 1, tmp_path / "noisy")
    run = recipe(corpus=str(noisy), stages={"decoder": {**DECODER, "weighting": {"name": "superloss"}}})
    distill(run)
    found = CliRunner().invoke(app, ["weights", str(run.output), "--top", "3"], catch_exceptions=False)
    assert found.exit_code == 0
    wrong = {json.loads(line)["id"] for line in (noisy / "corrupted.jsonl").read_text().splitlines()}
    assert f"of {len(wrong)} corrupted labels" in " ".join(found.output.split())
    page = (run.output / "weights.html").read_text()
    assert page.count("<audio") == 3
    assert page.count("corrupted on purpose") == len(wrong & set(ranked(read_run(run.output).distrust()[0])[:3]))
    assert set(read_run(run.output).found) == {"system", "student_loss", "teacher_loss"}


def test_a_folder_without_weights_is_one_line(tmp_path):
    with pytest.raises(UserError, match="expected the folder of a finished run"):
        read_run(tmp_path)


def test_a_published_run_is_read_with_its_earlier_keys(capsys):
    found = read_run(ROOT / "docs" / "results" / "studies" / "example-run")
    found.print(1)
    assert "constant ones of that size: {name: fixed, alpha: 0." in capsys.readouterr().out
