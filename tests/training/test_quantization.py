"""Quantization-aware training: gradients, what is kept in checkpoints and files, what is validated, and what is refused."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

import workbench.training.teaching.self_teacher
from tests.conftest import DECODER, ENCODER
from tests.training.test_engine import gradients_of_a_step, launch, losses
from tests.training.test_targets_and_training import (
    killed_at,
    losses_with_and_without_compile,
    resumes_to_the_same_bits,
    weights,
)
from workbench.cache.encoder_cache import encoder_cache_folder
from workbench.cache.tensor_shards import ShardStore
from workbench.config.additions import QuantizationRecipe
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.evaluation.transcribe import validate, validate_encoded
from workbench.models import open_family
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.passes import encode
from workbench.training.quantization import Quantization, _through
from workbench.training.trainer import distill

ALL = {**DECODER, "trainable": "all", "encoder_matching": 1.0, "epochs": 1, "micro_batches": 1}
MIXED = {"encoder": "int8", "decoder": "q4"}
BLOCKS = {"encoder": "w8", "decoder": "q4"}  # weights alone


def stage(quantization=MIXED, **changes):
    return {"s": {**ALL, "quantization": quantization, **changes}}


def rounded_copy(checkpoint, folder, settings):
    """A checkpoint with the weights that a bundle of it would hold."""
    shutil.copytree(checkpoint, folder)
    family = open_family(checkpoint)
    model = family.load()
    with Quantization(model, family, QuantizationRecipe(**settings)).applied():
        family.save(model, folder)
    return folder


@pytest.mark.parametrize("part", ["all", "decoder"])
def test_the_gradient_is_that_at_the_rounded_weights(recipe, tiny_checkpoint, tmp_path, monkeypatch, part):
    """The straight-through estimator, against a student whose weights are the rounded ones."""
    matching = {"encoder_matching": 1.0 if part == "all" else 0.0}
    rounded = rounded_copy(tiny_checkpoint, tmp_path / "rounded", BLOCKS)
    plain = stage(None, trainable=part, **matching)
    found = gradients_of_a_step(recipe("a", stages=stage(BLOCKS, trainable=part, **matching), student={}), monkeypatch)
    at_rounded = gradients_of_a_step(recipe("b", stages=plain, student={"init_from": str(rounded)}), monkeypatch)
    elsewhere = gradients_of_a_step(recipe("c", stages=plain, student={}), monkeypatch)
    assert len(found) == len(at_rounded) > 20
    for ours, theirs in zip(found, at_rounded, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert any(not torch.allclose(ours, theirs, rtol=1e-2) for ours, theirs in zip(found, elsewhere, strict=True))


def test_the_optimizer_moves_the_weights_as_they_were(recipe, tiny_checkpoint):
    run = recipe(stages=stage(max_steps=1, warmup_ratio=0.0, learning_rate=1e-4), student={})
    distill(run)
    before, after = Whisper(tiny_checkpoint).load().state_dict(), weights(run.output)
    for name, value in after.items():
        assert (value - before[name]).abs().max() <= 1.001e-4, name  # AdamW's first step is at most the rate
    assert not torch.equal(after["model.decoder.embed_tokens.weight"], before["model.decoder.embed_tokens.weight"])


def test_a_gradient_passes_straight_through_rounded_inputs():
    values = torch.randn(3, 8, requires_grad=True)
    out = _through(values, by_row=True)
    assert not torch.equal(out, values)
    factors = torch.randn(3, 8)
    torch.testing.assert_close(torch.autograd.grad((out * factors).sum(), values)[0], factors)


@pytest.mark.parametrize(("key", "value"), [("micro_batches", 3), ("activation_checkpointing", True)])
def test_parts_and_recomputed_activations_change_nothing(recipe, monkeypatch, key, value):
    found = [
        gradients_of_a_step(recipe(name, stages=stage(BLOCKS, batch_seconds=12.0, **changes)), monkeypatch)
        for name, changes in (("whole", {}), ("other", {key: value}))
    ]
    largest = max(float(g.abs().max()) for g in found[0])
    for whole, other in zip(*found, strict=True):
        torch.testing.assert_close(whole, other, atol=1e-5 * largest, rtol=1e-3)


def test_a_run_resumes_to_the_same_bits_and_its_files_are_a_plain_runs(recipe, monkeypatch, tiny_checkpoint):
    given = {"stages": stage(epochs=2), "checkpoint_minutes": 1e-9, "ema_decay": 0.9, "student": {}}
    whole = resumes_to_the_same_bits(recipe, monkeypatch, **given)
    plain = recipe("plain", **{**given, "stages": stage(None, epochs=2)})
    quantized = recipe("killed-again", **given)
    for run in (plain, quantized):
        with killed_at(monkeypatch, 3):
            distill(run)
    files = [next((run.output / "checkpoints").glob("step-*")) for run in (plain, quantized)]
    for name in ("model", "optimizer", "average"):
        first, second = (load_file(folder / f"{name}.safetensors") for folder in files)
        assert {key: (v.shape, v.dtype) for key, v in first.items()} == {
            k: (v.shape, v.dtype) for k, v in second.items()
        }
    assert weights(whole.output).keys() == load_file(tiny_checkpoint / "model.safetensors").keys()


def test_validation_scores_what_will_be_exported_and_keeps_what_was_trained(recipe, monkeypatch):
    scored = []
    monkeypatch.setattr(
        "workbench.training.validation.validate_encoded",
        lambda *given: scored.append(validate_encoded(*given)) or scored[-1],
    )
    run = recipe(stages=stage(), student={})
    student = distill(run)
    scores = json.loads((run.output / "scores.json").read_text())
    assert scores["validation_quantization"] == {**MIXED, "reduce_range": False}
    family = open_family(student)
    model, clips = family.load(), open_corpus(run.corpus, "validation")
    plain = validate(model, family, clips, 0.4)
    with Quantization(model, family, QuantizationRecipe(**MIXED)).applied():
        rounded = validate(model, family, clips, 0.4)
        again = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert [found.hypotheses for found in scored] == [rounded.hypotheses]
    assert rounded.hypotheses != plain.hypotheses
    saved = weights(run.output)
    assert not torch.equal(saved["model.encoder.layers.0.fc1.weight"], again["model.encoder.layers.0.fc1.weight"])


def test_the_best_student_is_one_of_the_stage_that_rounds(recipe, monkeypatch):
    """A better score of an earlier stage was that of weights which are not rounded."""
    found = iter([1.0, 90.0, 80.0, 85.0])
    transcripts = type("T", (), {"scores": lambda _: {"wer": next(found), "cer": 0.0, "loops": 0.0}})
    monkeypatch.setattr("workbench.training.validation.validate_encoded", lambda *_: transcripts())
    stages = {"plain": {**ALL, "epochs": 1}, "rounded": {**ALL, "epochs": 3, "quantization": MIXED}}
    run = recipe(stages=stages)
    distill(run)
    assert json.loads((run.output / "scores.json").read_text())["validation"]["wer"] == 80.0


def test_a_frozen_encoder_is_rounded_before_its_states_are_kept(recipe, cache):
    run = recipe(stages=stage(trainable="decoder", encoder_matching=0.0), student={})
    other = recipe("plain", stages=stage(None, trainable="decoder", encoder_matching=0.0), student={})
    distill(other)
    distill(run)
    folders = [encoder_cache_folder(run, what, [], run.stages["s"].quantization) for what in ("trained", "evaluated")]
    assert all(folder.is_dir() for folder in folders)
    assert not {encoder_cache_folder(other, what, []) for what in ("trained", "evaluated")} & set(folders)
    store = ShardStore(folders[1])
    states, seconds = next((store.read(key, ["states"])[0], store.index[key]["seconds"]) for key in store.index)
    family = open_family(run.output / "student")
    model = family.load()
    clips = sorted(open_corpus(run.corpus, "validation"), key=lambda u: u.seconds)
    features = family.features([u.wave() for u in clips], max(seconds) + 0.4)
    with torch.no_grad():
        plain = encode(model, features)
        with Quantization(model, family, QuantizationRecipe(encoder="int8")).applied():
            rounded = encode(model, features)
    assert (states - rounded).abs().mean() < 0.1 * (states - plain).abs().mean()


def test_a_self_teacher_is_not_rounded_and_no_hook_stays(recipe, monkeypatch):
    caught = []
    targets = workbench.training.teaching.self_teacher.SelfTeacher.targets

    def looked(self, *args):
        found = targets(self, *args)
        caught.append(args[3].detach().shape)
        switches = {hook.args[0].on for module in self.model.modules() for hook in module._forward_pre_hooks.values()}
        assert switches == {False}
        own = self.model.get_parameter("model.encoder.layers.0.fc1.weight")
        assert len(own[0].unique()) == own.shape[1]  # not on a grid
        return found

    monkeypatch.setattr(workbench.training.teaching.self_teacher.SelfTeacher, "targets", looked)
    kept = []
    close = Quantization.close
    monkeypatch.setattr(Quantization, "close", lambda self: (kept.append(self._model), close(self)))
    askd = {"name": "askd", "phase1": 0.3, "self_teacher": "ema"}
    distill(recipe(stages=stage({"encoder": "int8", "decoder": "int8"}, weighting=askd, epochs=2), student={}))
    assert caught
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in kept[0].modules())


@pytest.mark.parametrize("changes", [
    {"precision": "bf16"},
    {"student": {"decoder_layers": [0, 2], "vocabulary": "corpus"}},
    {"student": {"pool_after": 1}},
    {"stages": stage(weighting={"name": "almkd", "start_epoch": 0, "update_every": 1}, encoder_matching=0.0)},
    {"stages": stage(on_policy={"fraction": 0.5}, mixup={"fraction": 0.5}, encoder_matching=0.0)},
    {"stages": {"s": {**ENCODER, "quantization": {"encoder": "int8-0", "reduce_range": True}}}},
], ids=str)  # fmt: skip
def test_it_trains_with_what_else_a_recipe_has(recipe, changes):
    run = recipe(**{"stages": stage(), **changes})
    distill(run)
    assert all(v.isfinite().all() for v in weights(run.output).values())


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2"])
def test_students_with_a_ctc_head(ctc, over_whisper, kind):
    rounds = {"quantization": {"encoder": "int8"}}
    head = {"trainable": "decoder", "epochs": 1, "learning_rate": 1e-3, "batch_seconds": 6.0, "weighting": {"name": "fixed", "alpha": 0}}  # fmt: skip
    if kind == "whisper":
        run = over_whisper(
            stages={"head": {**head, **rounds}, "ctc": {**head, "trainable": "all", "quantization": {"encoder": "q4"}}}
        )
    else:
        run = ctc(stage={**rounds, "intermediate_ctc": {"layer": 0}})
    distill(run)
    assert json.loads((run.output / "scores.json").read_text())["validation_quantization"]["encoder"]


def divergence(student, checkpoint, clips, settings):
    """Mean KL divergence from the teacher at the labels, of a student with the weights that a bundle of it would hold."""
    family, teacher = open_family(student), Whisper(checkpoint).load()
    model = family.load()
    tokens, waves = family.tokens([u.text for u in clips], [u.language for u in clips]), [u.wave() for u in clips]
    with torch.no_grad():
        theirs = family.logits(teacher, family.encode(teacher, family.features(waves, 30.0)), tokens).log_softmax(-1)
        with Quantization(model, family, QuantizationRecipe(**settings)).applied():
            ours = family.logits(model, family.encode(model, family.features(waves, 3.0)), tokens).log_softmax(-1)
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def test_a_student_that_was_trained_rounded_loses_less_by_it(recipe, tiny_checkpoint):
    """After as many steps from the same student."""
    four_bits, found = {"encoder": "q4", "decoder": "q4"}, {}
    for name, settings in (("plain", None), ("rounded", four_bits)):
        from_teacher = {"weighting": {"name": "fixed", "alpha": 1.0}, "encoder_matching": 0.0, "epochs": 10}
        run = recipe(
            name, stages=stage(settings, **from_teacher), student={}, validate_every=10, targets={"kind": "full"}
        )
        found[name] = divergence(distill(run), tiny_checkpoint, open_corpus(run.corpus, "train"), four_bits)
    assert found["rounded"] < 0.8 * found["plain"], found


def test_what_cannot_be_rounded_is_refused(recipe, ctc, tmp_path):
    for changes, said in (
        ({"quantization": {"encoder": "int9"}}, "encoder is 'int9'; no scheme 'int9'; did you mean 'int8'"),
        ({"quantization": {"decoder": "int4"}}, "its name here is 'q4'"),
        ({"quantization": {"encoder": "fp16"}}, "a student is trained with int8, w8, q4 alone"),
        ({"quantization": {"encoder": "int8_static"}}, "a student is trained with int8, w8, q4 alone"),
        ({"quantization": {"encoder": "fp32"}}, "would have no effect; leave it out"),
        ({"quantization": {"decoder": "q4", "reduce_range": True}}, "reduce_range would have no effect without int8"),
        ({"quantization": {"enocder": "int8"}}, "did you mean 'encoder'"),
        ({"quantization": {"decoder": "q4"}, "trainable": "encoder"}, "the decoder alone, which stays as it is"),
        (
            {"decoder_losses": False, "weighting": {"name": "fixed"}},
            "quantization.decoder would have no effect: decoder_losses is false",
        ),
    ):
        with pytest.raises(UserError, match=said) as error:
            recipe("bad", stages=stage(**changes))
        assert "\n" not in str(error.value)
    low_rank = {"encoder_low_rank_variance": 0.9}
    for run, said in (
        (recipe("a", stages=stage({"encoder": "int8-7"})), r"stages.s.quantization: encoder is 'int8-7', but there is no layer 7"),
        (recipe("b", stages=stage({"encoder": "int8"}), student=low_rank), r"stages.s.quantization: the encoder has low-rank layers"),
        (ctc("c", stage={"quantization": {"decoder": "q4"}}), r"stages.all.quantization: a student with a CTC head is exported as one graph"),
        (ctc("d", "wavlm", stage={"quantization": {"encoder": "int8"}}), r"stages.all.quantization: encoder is 'int8', but the inputs of this model's attention cannot be rounded"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            distill(run)


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(recipe, tmp_path):
    stages = stage(BLOCKS, micro_batches=2, epochs=2)
    two, one = recipe("two", stages=stages), recipe("one", stages=stages)
    launch(two, tmp_path, processes=2)
    distill(one)
    assert losses(two.output) == pytest.approx(losses(one.output), rel=2e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_step_computes_the_same(recipe, tmp_path):
    stages = {"s": {**DECODER, "trainable": "all", "epochs": 1, "quantization": {"encoder": "int8", "decoder": "int8"}}}
    one_layer = partial(recipe, student={"encoder_layers": 1, "decoder_layers": 1})
    eager, compiled = losses_with_and_without_compile(one_layer, tmp_path, stages)
    assert eager == pytest.approx(compiled, rel=1e-2)  # a difference in the last bit may round an input another way
