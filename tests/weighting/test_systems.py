"""Every weighting system, divergence and source of targets through the real training loop, on the tiny model."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

from tests.conftest import DECODER, slow_but
from tests.training.test_targets_and_training import killed_at, same, weights
from workbench.cache.checksums import read_checked_rows
from workbench.cache.uncertainty import mutual_information
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.evaluation.transcribe import validate
from workbench.models import open_family
from workbench.models.whisper.family import Whisper
from workbench.training.teaching.on_policy import OnPolicy
from workbench.training.teaching.self_teacher import SelfTeacher
from workbench.training.teaching.teacher_ensemble import shares_of
from workbench.training.trainer import distill
from workbench.weighting import known_weightings
from workbench.weighting.protocol import SelfTeacherSettings


def stage(**changes):
    return {"decoder": {**DECODER, **changes}}


@pytest.fixture
def few_tokens(monkeypatch):
    """The tiny model's whole vocabulary is bytes and specials, which are always kept; here only the specials are."""
    monkeypatch.setattr(Whisper, "special_tokens", lambda self: sorted(self.tokenizer.get_added_vocab().values()))


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


OPTIONS = {
    "almkd": {"start_epoch": 0, "update_every": 1, "steps_per_update": 2},
    "amal": {"start_epoch": 1, "update_every": 1, "steps_per_update": 2},
    "askd": {"phase1": 0.4},
}


@pytest.mark.parametrize("name", slow_but(["adakd", "almkd", "askd"], known_weightings()))
def test_every_system_trains_and_resumes_to_the_same_bits(recipe, monkeypatch, name):
    given = {"stages": stage(weighting={"name": name, **OPTIONS.get(name, {})})}
    whole = recipe("whole", **given)
    distill(whole)
    killed = recipe("killed", checkpoint_minutes=1e-9, **given)
    with killed_at(monkeypatch, 3):
        distill(killed)
    distill(killed)
    assert same(weights(whole.output), weights(killed.output))
    rows = [pq.read_table(r.output / "weights.parquet").to_pylist() for r in (whole, killed)]
    assert rows[0] == rows[1]
    assert all(row["alpha"] >= 0 and row["task_weight"] >= 0 for row in rows[0])


def test_learnt_weights_are_per_utterance_and_their_time_is_reported(recipe):
    run = recipe(
        stages=stage(
            epochs=3,
            weighting={
                "name": "almkd",
                "start_epoch": 1,
                "update_every": 1,
                "steps_per_update": 1,
                "weight_learning_rate": 0.05,
            },
        )
    )
    distill(run)
    rows = pq.read_table(run.output / "weights.parquet").to_pylist()
    last = {r["id"]: r["alpha"] for r in rows if r["step"] > max(x["step"] for x in rows) * 2 / 3}
    first = {r["id"]: r["alpha"] for r in rows if r["step"] <= max(x["step"] for x in rows) / 3}
    assert len(set(last.values())) > 1
    assert last != first
    assert json.loads((run.output / "scores.json").read_text())["seconds"]["look_ahead"] >= 0


@pytest.mark.parametrize("kind", ["ema", "snapshot", "previous_epoch", "intermediate"])
def test_askd_teaches_itself_and_says_so(recipe, monkeypatch, kind):
    given = {"stages": stage(epochs=4, weighting={"name": "askd", "phase1": 0.5, "self_teacher": kind})}
    run = recipe("whole", **given)
    distill(run)
    lines = metrics(run.output)
    teaching = [m["self_teaching"] for m in lines if "self_teaching" in m]
    assert teaching == sorted(teaching)
    assert set(teaching) == {0.0, 1.0}
    assert all("disagreement" in m for m in lines if "loss" in m)
    if kind != "intermediate":
        assert "validation_self_teacher_wer" in [m for m in lines if "validation_wer" in m][-1]
    killed = recipe("killed", checkpoint_minutes=1e-9, **given)
    for step in (2, 5):
        with killed_at(monkeypatch, step):
            distill(killed)
    distill(killed)
    assert same(weights(run.output), weights(killed.output))


def test_askd_intermediate_needs_an_earlier_layer(recipe):
    with pytest.raises(UserError, match="one before the last"):
        distill(recipe(stages=stage(weighting={"name": "askd", "self_teacher": "intermediate", "student_layer": 1})))


@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "logit_mse"])
def test_every_divergence_composes_with_a_weighting(recipe, name):
    run = recipe(
        stages=stage(epochs=3, learning_rate=5e-3, divergence={"name": name}, weighting={"name": "fixed", "alpha": 1})
    )
    distill(run)
    losses = [m["distillation"] for m in metrics(run.output) if "loss" in m]
    third = len(losses) // 3
    assert sum(losses[-third:]) < sum(losses[:third])


def test_a_narrowed_student_learns_what_the_whole_one_would_over_its_tokens(recipe, few_tokens):
    """Same corpus, same steps: only tokens outside the corpus may differ, and those are never written."""
    run = recipe(student={"decoder_layers": [0, 2], "vocabulary": "corpus"}, stages=stage(epochs=3))
    student = distill(run)
    scores = json.loads((run.output / "scores.json").read_text())
    assert scores["student"]["vocabulary"] < 263
    model = WhisperForConditionalGeneration.from_pretrained(student)
    assert model.config.vocab_size == 263
    assert model.model.decoder.embed_tokens.weight is model.proj_out.weight
    family = open_family(student)
    clips = open_corpus(run.corpus, "validation")
    found = validate(family.load(), family, clips, run.trailing_silence.inference).scores()
    assert found["wer"] == scores["validation"]["wer"]
    assert found["cer"] == scores["validation"]["cer"]
    unknown = set(model.generation_config.suppress_tokens)
    assert len(unknown) >= 263 - scores["student"]["vocabulary"]


def test_a_narrowed_run_resumes_to_the_same_bits(recipe, monkeypatch, few_tokens):
    given = {"student": {"decoder_layers": [0, 2], "vocabulary": "corpus"}}
    whole, killed = recipe("whole", **given), recipe("killed", checkpoint_minutes=1e-9, **given)
    distill(whole)
    with killed_at(monkeypatch, 4):
        distill(killed)
    distill(killed)
    assert same(weights(whole.output), weights(killed.output))


def test_several_teachers_share_the_distillation_loss(recipe, tiny_checkpoint, tmp_path):
    other = tmp_path / "other-teacher"
    model = WhisperForConditionalGeneration.from_pretrained(tiny_checkpoint)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.model.decoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(other)
    for path in tiny_checkpoint.iterdir():
        if not (other / path.name).exists():
            (other / path.name).write_bytes(path.read_bytes())
    fixed = {"name": "fixed", "alpha": 1.0}

    def first_distillation(name, **given):
        run = recipe(name, stages=stage(epochs=1, weighting=fixed), **given)
        distill(run)
        return metrics(run.output)[0]["distillation"]

    alone, twin = first_distillation("alone"), first_distillation("twin", teacher=str(other), student={
        "decoder_layers": [0, 2], "init_from": str(tiny_checkpoint)})  # fmt: skip
    both = first_distillation("both", more_teachers=[str(other)], teacher_weights=[3, 1])
    assert both == pytest.approx(0.75 * alone + 0.25 * twin, rel=1e-3)
    run = recipe(
        "amal",
        more_teachers=[str(other)],
        stages=stage(weighting={"name": "amal", "start_epoch": 0, "update_every": 1}),
    )
    distill(run)
    scores = json.loads((run.output / "scores.json").read_text())
    assert list(scores["teachers"].values()) == [0.5, 0.5]
    best = recipe("best", more_teachers=[str(other)], teacher_weights="best", stages=stage(epochs=1))
    distill(best)
    assert sorted(json.loads((best.output / "scores.json").read_text())["teachers"].values()) == [0.0, 1.0]


def test_shares_of_teachers():
    assert shares_of([5.0, 3.0, 9.0], "best") == (0.0, 1.0, 0.0)
    assert shares_of([2.0, 2.0], "softmax") == (0.5, 0.5)
    first, second = shares_of([1.0, 2.0], "softmax")
    assert first / second == pytest.approx(torch.e)


@pytest.mark.parametrize("method", ["gkd", "speculative"])
@pytest.mark.parametrize("vocabulary", slow_but(["corpus"], ["all", "corpus"]))
def test_on_policy_trains_on_its_own_words_and_resumes(recipe, monkeypatch, few_tokens, method, vocabulary):
    given = {
        "student": {"decoder_layers": [0, 2], "vocabulary": vocabulary},
        "stages": stage(on_policy={"method": method, "fraction": 0.6, "top_k": 3}),
    }
    whole, killed = recipe("whole", **given), recipe("killed", checkpoint_minutes=1e-9, **given)
    distill(whole)
    lines = [m for m in metrics(whole.output) if "loss" in m]
    assert {m.get("on_policy", 0.0) for m in lines} == {0.0, 1.0}
    assert json.loads((whole.output / "scores.json").read_text())["seconds"]["sampling"] > 0
    with killed_at(monkeypatch, 3):
        distill(killed)
    distill(killed)
    assert same(weights(whole.output), weights(killed.output))


def test_frozen_states_are_shared_by_runs_with_the_same_initial_encoder(recipe, cache):
    first = recipe("first", stages=stage(epochs=1))
    distill(first)
    stores = {p: p.stat().st_mtime_ns for p in (cache / "encoded").glob("*/*.safetensors")}
    assert stores
    distill(recipe("second", stages=stage(epochs=1, weighting={"name": "fixed"})))
    assert {p: p.stat().st_mtime_ns for p in (cache / "encoded").glob("*/*.safetensors")} == stores
    distill(recipe("other seed", seed=2, stages=stage(epochs=1)))
    assert len(list((cache / "encoded").glob("*/*.safetensors"))) > len(stores)


def test_uncertainty_is_the_information_that_dropout_holds():
    certain = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]).clamp(1e-9).log()
    torn = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).clamp(1e-9).log()
    vague = torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]]).log()
    assert mutual_information(certain).item() == pytest.approx(0.0, abs=1e-6)
    assert mutual_information(torn).item() == pytest.approx(0.6931, abs=1e-3)
    assert mutual_information(vague).item() == pytest.approx(0.0, abs=1e-6)


def test_the_teachers_uncertainty_is_measured_once(recipe, cache):
    distill(recipe("first", stages=stage(epochs=1, weighting={"name": "mc_dropout"})))
    (path,) = (cache / "uncertainty").glob("*/*.jsonl")
    lines = path.read_text()
    distill(recipe("second", stages=stage(epochs=1, weighting={"name": "mc_dropout", "alpha": 0.5})))
    assert path.read_text() == lines
    rows = list(read_checked_rows(path))
    assert len(rows) == len(list(filter(None, lines.splitlines()))) > 0
    assert all(row["value"] >= 0 for row in rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"weighting": {"name": "askd", "phase1": 0.4}},
        {"weighting": {"name": "amal", "start_epoch": 0, "update_every": 1}},
        {"on_policy": {"method": "speculative"}, "divergence": {"name": "jsd"}},
    ],
    ids=["askd", "amal", "speculative"],
)
def test_systems_train_in_bf16_with_the_encoder(recipe, changes):
    run = recipe(precision="bf16", stages=stage(trainable="all", encoder_matching=1.0, **changes))
    distill(run)
    assert all(value.isfinite().all() for value in weights(run.output).values())


def test_conditional_weighs_token_by_token(recipe):
    run = recipe(stages=stage(epochs=1, weighting={"name": "conditional"}))
    distill(run)
    rows = pq.read_table(run.output / "weights.parquet").to_pylist()
    assert all(row["alpha"] + row["task_weight"] == pytest.approx(1.0, abs=1e-5) for row in rows)


def test_wrong_options_are_said_before_anything_runs(recipe):
    for changes, said in (
        ({"teacher_weights": [0.5, 0.5]}, "2 numbers for 1 teachers"),
        ({"stages": stage(divergence={"name": "forward_kl", "betta": 1})}, "did you mean 'beta'"),
        ({"stages": stage(on_policy={"methd": "gkd"})}, "did you mean 'method'"),
        ({"student": {"vocabulary": "some"}}, "vocabulary"),
        (
            {"corpus": "hf:x", "stream": {}, "stages": stage(max_steps=3, weighting={"name": "mc_dropout"})},
            "mc_dropout needs the teacher's pass",
        ),
        ({"corpus": "hf:x", "stream": {}, "stages": stage(max_steps=3, on_policy={})}, "on_policy"),
    ):
        with pytest.raises(UserError, match=said):
            recipe("bad", **changes)


def test_the_saved_student_has_the_rows_that_were_trained(recipe, tiny_checkpoint, few_tokens):
    run = recipe(student={"decoder_layers": [0, 2], "vocabulary": "corpus"}, stages=stage(epochs=1))
    found = load_file(distill(run) / "model.safetensors")["model.decoder.embed_tokens.weight"]
    initial = WhisperForConditionalGeneration.from_pretrained(tiny_checkpoint).model.decoder.embed_tokens.weight
    changed = (found != initial).any(1)
    assert 0 < int(changed.sum()) <= json.loads((run.output / "scores.json").read_text())["student"]["vocabulary"]


def test_on_policy_targets_are_what_the_teacher_would_write_next(recipe, monkeypatch):
    """Computed again token by token with the teacher's incremental decoder, over the student's own words."""
    propose, checked = OnPolicy.propose, []

    def spied(self, model, batch, states):
        own, targets = propose(self, model, batch, states)
        heard = self.teacher.states(batch.ids, states.device)
        for i in range(len(own.ids)):
            decoder = self.teacher.family.incremental_decoder(self.teacher.model, heard[i : i + 1])
            rows = [decoder(own.inputs[i : i + 1, t : t + 1])[0] for t in range(own.inputs.shape[1])]
            expected = torch.stack([row for row, label in zip(rows, own.labels[i], strict=True) if label >= 0])
            torch.testing.assert_close(targets.logits[own.utterance_index == i], expected, rtol=1e-3, atol=1e-3)
            checked.append(len(expected))
        return own, targets

    monkeypatch.setattr(OnPolicy, "propose", spied)
    distill(recipe(stages=stage(epochs=1, max_steps=1, weighting={"name": "fixed"}, on_policy={"fraction": 1.0})))
    assert max(checked) > 1


def test_a_self_teacher_follows_the_student_by_its_decay(tiny_checkpoint):
    family = open_family(tiny_checkpoint)
    model = family.load()
    own = SelfTeacher(model, family, SelfTeacherSettings("ema", decay=0.75))
    name, mine, theirs = own.pairs[0]
    before = mine.clone()
    with torch.no_grad():
        theirs += 1
    own.on_optimizer_step(1000)  # where the decay has risen to its full value
    torch.testing.assert_close(mine, before + 0.25, msg=name)
