"""A stage with a teacher of its own: whose targets it learns, with which weights, and what is refused."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import DECODER, ENCODER, slow_but, with_more_tokens
from tests.training.test_targets_and_training import killed_at, same, weights
from workbench.core.errors import UserError
from workbench.training.trainer import distill

KD = {**DECODER, "epochs": 1, "weighting": {"name": "fixed", "alpha": 1.0}}


@pytest.fixture
def weaker(tiny_checkpoint, tmp_path):
    """The tiny teacher with noise on its decoder: another distribution, the same tokens."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "weaker")
    path = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(1)
    tensors = {
        k: v + 0.05 * torch.randn(v.shape, generator=generator) if ".layers." in k else v
        for k, v in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return str(folder)


def steps(run):
    return [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


def first(run, name="distillation"):
    distill(run)
    return steps(run)[0][name]


def test_a_stage_learns_from_the_teacher_that_it_names(recipe, weaker, tiny_checkpoint):
    student = {"decoder_layers": [0, 2], "init_from": str(tiny_checkpoint)}
    stages = {"assistant": {**KD, "teacher": weaker}, "expert": KD}
    two = recipe("two", stages=stages)
    distill(two)
    own, other = (first(recipe(n, teacher=t, student=student, stages={"assistant": KD}))
                  for n, t in (("own", str(tiny_checkpoint)), ("other", weaker)))  # fmt: skip
    assert steps(two)[0]["distillation"] == pytest.approx(other, rel=1e-4)
    assert abs(own - other) > 1e-3
    twice = recipe("twice", stages={"assistant": {**KD, "teacher": weaker}, "expert": {**KD, "teacher": weaker}})
    distill(twice)
    second, again = (next(line for line in steps(run) if line["stage"] == "expert") for run in (two, twice))
    assert second["task"] == pytest.approx(again["task"], rel=1e-4)  # the same student and clips
    assert abs(second["distillation"] - again["distillation"]) > 1e-3
    scores = json.loads((two.output / "scores.json").read_text())
    assert scores["stage_teachers"] == {"assistant": {weaker: 1.0}, "expert": {str(tiny_checkpoint): 1.0}}
    assert scores["teachers"] == {str(tiny_checkpoint): 1.0}


def test_the_recipes_teacher_named_by_a_stage_changes_nothing(recipe, tiny_checkpoint, cache):
    plain, named = (
        recipe("plain", stages={"s": KD}),
        recipe("named", stages={"s": {**KD, "teacher": str(tiny_checkpoint)}}),
    )
    distill(plain)
    before = sorted(cache.glob("*/*"))
    distill(named)
    assert same(weights(plain.output), weights(named.output))
    assert sorted(cache.glob("*/*")) == before


def test_more_teachers_teach_in_every_stage(recipe, weaker, tiny_checkpoint, tmp_path):
    third = str(shutil.copytree(tiny_checkpoint, tmp_path / "third"))  # the recipe's teacher under another name
    given = {"more_teachers": [third], "teacher_weights": [3, 1]}
    both = first(recipe("both", stages={"s": {**KD, "teacher": weaker}}, **given))
    alone = first(recipe("alone", stages={"s": {**KD, "teacher": weaker}}))
    strong = first(recipe("strong", stages={"s": KD}))
    assert both == pytest.approx(0.75 * alone + 0.25 * strong, rel=1e-3)
    best = recipe("best", stages={"s": {**KD, "teacher": weaker}}, more_teachers=[third], teacher_weights="best")
    distill(best)
    assert sorted(json.loads((best.output / "scores.json").read_text())["teachers"].values()) == [0.0, 1.0]


def test_weightings_and_matched_states_are_the_stages_teachers(recipe, weaker):
    """AdaKD's teacher loss, mc_dropout's uncertainty and the encoder's states, in a stage that names its teacher."""
    ada = {**KD, "weighting": {"name": "adakd", "difficulty_scale": "raw"}}
    own, other = (first(recipe(n, stages={"s": {**ada, "teacher": t}}), "alpha_mean")
                  for n, t in (("own", None), ("other", weaker)))  # fmt: skip
    assert abs(own - other) > 1e-4
    states, others = (first(recipe(f"e-{n}", stages={"s": {**ENCODER, "teacher": t}}), "matching")
                      for n, t in (("own", None), ("other", weaker)))  # fmt: skip
    assert others > states + 0.01
    layers, others = (first(recipe(f"l-{n}", stages={"s": {**KD, "decoder_matching": {"layers": {0: 1}}, "teacher": t}}), "hidden_matching")
                      for n, t in (("own", None), ("other", weaker)))  # fmt: skip
    assert abs(layers - others) > 1e-3
    unsure = {**KD, "weighting": {"name": "mc_dropout"}}
    run = recipe("unsure", stages={"other": {**unsure, "teacher": weaker}, "own": unsure, "again": unsure})
    distill(run)
    alphas = {name: {} for name in run.stages}
    for row in pq.read_table(run.output / "weights.parquet").to_pylist():
        alphas[row["stage"]][row["id"]] = row["alpha"]
    assert alphas["own"] == alphas["again"]
    assert any(abs(alphas["own"][name] - alphas["other"][name]) > 1e-3 for name in alphas["own"])


@pytest.mark.parametrize("vocabulary", slow_but(["all"], ["all", "corpus"]))
def test_a_killed_run_resumes_to_the_same_bits(recipe, weaker, monkeypatch, vocabulary):
    given = {
        "stages": {"a": {**KD, "teacher": weaker, "decoder_matching": {}}, "b": {**KD, "on_policy": {"fraction": 0.5}}},
        "student": {"decoder_layers": [0, 2], "vocabulary": vocabulary},
        "checkpoint_minutes": 1e-9,
    }
    whole, killed = recipe("whole", **given), recipe("killed", **given)
    distill(whole)
    for kill in (2, 4):
        with killed_at(monkeypatch, kill):
            distill(killed)
    distill(killed)
    assert same(weights(whole.output), weights(killed.output))
    assert "teacher of stage a" in json.loads((whole.output / "inputs.json").read_text())


def test_what_has_no_effect_or_cannot_work_is_refused(recipe, weaker, tiny_checkpoint, tmp_path):
    plain = {**KD, "weighting": {"name": "fixed", "alpha": 0.0}}
    for changes, said in (
        ({"stages": {"s": {**plain, "teacher": weaker}}}, "stages.s.teacher would have no effect"),
        ({"stages": {"s": {**KD, "teacher": weaker}}, "more_teachers": [weaker]}, "is one of more_teachers"),
        ({"corpus": "hf:x", "stream": {}, "stages": {"s": {**KD, "teacher": weaker, "max_steps": 3}}}, "stages.s.teacher: a stream"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said) as error:
            recipe("bad", **changes)
        assert "\n" not in str(error.value)
    recipe("good", stages={"s": {**plain, "teacher": weaker, "encoder_matching": 1.0, "trainable": "all"}})
    with_more_tokens(tiny_checkpoint, tmp_path / "other")
    with pytest.raises(
        UserError, match=r"stages.s.teacher: .*other' has a vocabulary of 271 tokens, .* share a tokenizer"
    ):
        distill(recipe("bad", stages={"s": {**KD, "teacher": str(tmp_path / "other")}}))
