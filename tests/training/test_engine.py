"""The step's arithmetic: parts add up to the whole, own gradients are autograd's, a frozen encoder runs once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import workbench.training.stage
from tests.conftest import DECODER, ENCODER, ROOT, with_more_tokens
from tests.training.test_targets_and_training import killed_at, same, weights
from workbench.core.errors import UserError
from workbench.core.machine.memory import Peak
from workbench.corpus import open_corpus
from workbench.corpus.batching import plan_steps
from workbench.losses.objectives import cross_entropy, forward_kl_top_k
from workbench.losses.token_losses import token_losses
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.packed import uses_dropout
from workbench.models.whisper.forward.passes import decoder_logits, encode
from workbench.models.whisper.forward.tied import TiedMatrix
from workbench.run.checkpoints import Timers, TrainingProgress, TrainingState
from workbench.run.preflight import check_sharding
from workbench.training.trainer import distill

ALL = {**DECODER, "trainable": "all", "encoder_matching": 1.0, "epochs": 1}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("rows", [1, 33, 70])
def test_the_gradient_of_the_token_losses_is_autograds(temperature, rows):
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, 50, generator=generator, requires_grad=True)
    teacher = 3 * torch.randn(rows, 50, generator=generator)
    labels = torch.randint(0, 50, (rows,), generator=generator)
    top = teacher.topk(5, -1)
    given = (top.indices, top.values, (teacher / temperature).logsumexp(-1), temperature)
    factors = torch.rand(2, rows, generator=generator)
    found = token_losses(logits, labels, *given)
    expected = cross_entropy(logits, labels), forward_kl_top_k(logits, *given)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    gradients = [
        torch.autograd.grad((factors[0] * task + factors[1] * divergence).sum(), logits)[0]
        for task, divergence in (found, expected)
    ]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_the_tied_matrix_has_the_gradient_of_both_its_uses():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 6, generator=generator, requires_grad=True)
    ids = torch.tensor([[1, 2, 2, 7], [3, 7, 1, 7]])
    factors = torch.randn(8, 20, generator=generator)

    def loss(embed, project):
        return (project(torch.tanh(embed(ids)).flatten(0, 1)) * factors).sum()

    matrix = TiedMatrix(weight, padding_id=7)
    ours = torch.autograd.grad(loss(matrix.embed, matrix.project), weight)[0]
    plain = loss(
        lambda i: torch.nn.functional.embedding(i, weight, padding_idx=7),
        lambda h: torch.nn.functional.linear(h, weight),
    )
    torch.testing.assert_close(ours, torch.autograd.grad(plain, weight)[0], atol=1e-5, rtol=1e-5)


def test_the_own_decoder_pass_is_transformers(tiny_checkpoint):
    family = Whisper(tiny_checkpoint)
    model = family.load()
    clips = open_corpus("prompts-en", "test", 3)
    states = encode(model, family.features([u.wave() for u in clips], 30.0)).detach()
    tokens = family.tokens([u.text for u in clips], ["en"] * 3)
    hidden = model.model.decoder(tokens.inputs, encoder_hidden_states=states, use_cache=False).last_hidden_state
    expected = model.proj_out(hidden.flatten(0, 1)[tokens.labelled()])
    torch.testing.assert_close(decoder_logits(model, states, tokens), expected, atol=1e-5, rtol=1e-4)
    padded = torch.nn.functional.pad(states, (0, 0, 0, 9), value=5.0)
    attention_mask = torch.ones(3, 1509, dtype=torch.bool)
    attention_mask[:, 1500:] = False
    masked = decoder_logits(model, padded, tokens, attention_mask=attention_mask)
    torch.testing.assert_close(masked, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("words", [2, 30])  # fewer tokens than a head is wide, and more: attention goes two ways
def test_the_decoder_without_padding_is_transformers_and_so_are_its_gradients(tiny_checkpoint, monkeypatch, words):
    family = Whisper(tiny_checkpoint)
    torch.manual_seed(0)
    states, attention_mask = torch.randn(3, 12, 32), torch.arange(12)[None] < torch.tensor([12, 7, 1])[:, None]
    tokens = family.tokens(["ab " * words, "a", "ab"], ["en", "es", "en"])

    def found():
        model = family.load().train()
        given = states.clone().requires_grad_()
        logits = decoder_logits(model, given, tokens, attention_mask=attention_mask, early_layer=1)
        logits.square().mean().backward()
        return logits, given.grad, {name: p.grad for name, p in model.model.decoder.named_parameters()}

    ours = found()
    monkeypatch.setattr("workbench.models.whisper.forward.passes.uses_dropout", lambda _: True)
    theirs = found()
    torch.testing.assert_close(ours[:2], theirs[:2], atol=1e-5, rtol=1e-4)
    for name, gradient in ours[2].items():
        torch.testing.assert_close(gradient, theirs[2][name], atol=1e-5, rtol=1e-3, msg=name)


def test_layers_with_dropout_are_transformers_own(tiny_checkpoint):
    layers = Whisper(tiny_checkpoint).load().model.decoder.layers
    assert not uses_dropout(layers.train())
    layers[1].dropout = 0.1
    assert uses_dropout(layers)
    assert not uses_dropout(layers.eval())


def test_clips_without_their_padding_are_read_as_behind_a_mask(tiny_checkpoint, monkeypatch):
    family = Whisper(tiny_checkpoint)
    model = family.load()
    clips = [u.wave() for u in open_corpus("prompts-en", "test", 3)]
    features = family.features(clips, 6.0)
    attention_mask = torch.arange(300)[None] < torch.tensor([[300], [120], [41]])
    packed = encode(model, features, attention_mask)
    loss = (packed * attention_mask[..., None]).square().sum()
    gradient = torch.autograd.grad(loss, model.model.encoder.layers[0].fc1.weight)[0]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # takes the form for GPUs
    masked = encode(model, features, attention_mask)
    torch.testing.assert_close(packed[attention_mask], masked[attention_mask], atol=1e-5, rtol=1e-4)
    other = torch.autograd.grad(
        (masked * attention_mask[..., None]).square().sum(), model.model.encoder.layers[0].fc1.weight
    )
    torch.testing.assert_close(gradient, other[0], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(encode(model, features)[2, :41], packed[2, :41], atol=1e-3)  # padding does matter


def gradients_of_a_step(parsed, monkeypatch):
    """Gradients before clipping and the logged scalars of a run's first step."""
    AcceleratorState._reset_state(reset_partial_state=True)
    caught = {}
    clip = "accelerate.Accelerator.clip_grad_norm_"

    def catch(self, parameters, *_):
        caught["gradients"] = [p.grad.clone() for p in parameters]
        raise KeyboardInterrupt

    monkeypatch.setattr(clip, catch)
    with pytest.raises(KeyboardInterrupt):
        distill(parsed)
    return caught["gradients"]


@pytest.mark.parametrize("average_over", ["utterances", "tokens"])
@pytest.mark.parametrize("stage", [ALL, DECODER])
def test_a_step_in_parts_has_the_gradient_of_the_whole(recipe, monkeypatch, stage, average_over):
    stage = {**stage, "batch_seconds": 12.0, "average_over": average_over}
    found = [
        gradients_of_a_step(recipe(f"parts-{n}", stages={"s": {**stage, "micro_batches": n}}), monkeypatch)
        for n in (1, 3)
    ]
    largest = max(float(g.abs().max()) for g in found[0])
    assert largest > 1e-4
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-5 * largest, rtol=1e-3)


def test_checkpointed_activations_change_nothing(recipe, monkeypatch):
    stage = {**ALL, "micro_batches": 1}
    found = [
        gradients_of_a_step(recipe(f"c-{on}", stages={"s": {**stage, "activation_checkpointing": on}}), monkeypatch)
        for on in (False, True)
    ]
    for kept, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(kept, recomputed, atol=1e-6, rtol=1e-4)


def test_a_frozen_encoder_runs_once_a_clip(recipe, monkeypatch):
    calls = []
    features = Whisper.features

    def counted(self, waves, *args):
        calls.append(len(waves))
        return features(self, waves, *args)

    monkeypatch.setattr(Whisper, "features", counted)
    parsed = recipe(stages={"decoder": {**DECODER, "epochs": 3}}, validate_every=3)
    distill(parsed)
    train, validation = (len(open_corpus(parsed.corpus, split)) for split in ("train", "validation"))
    assert sum(calls) == 2 * train + validation  # by the teacher, by the student, and once validated
    assert not (parsed.output / "encoded").exists()


def test_noise_makes_the_frozen_encoder_run_in_every_step_and_says_so(recipe, caplog):
    caplog.set_level("INFO", logger="workbench")
    distill(recipe(stages={"decoder": {**DECODER, "epochs": 1}}, augment={"noise_probability": 1.0}))
    assert "frozen encoder runs in every step" in caplog.text


def test_a_run_with_a_moving_average_resumes_to_the_same_bits(recipe, monkeypatch):
    whole = recipe("whole", ema_decay=0.9)
    distill(whole)
    killed = recipe("killed", ema_decay=0.9, checkpoint_minutes=1e-9, keep_checkpoints=2)
    with killed_at(monkeypatch, 4):
        distill(killed)
    assert len(list((killed.output / "checkpoints").glob("step-*"))) == 2
    distill(killed)
    assert same(weights(whole.output), weights(killed.output))
    plain = recipe("plain")
    distill(plain)
    assert not same(weights(whole.output), weights(plain.output))


def test_a_step_is_cut_until_it_fits_the_memory(recipe, monkeypatch, caplog):
    caplog.set_level("INFO", logger="workbench")
    monkeypatch.setattr(workbench.training.stage, "peak_of", lambda work, _: (work(), Peak(60, 100))[1])
    parsed = recipe(stages={"decoder": {**DECODER, "epochs": 1, "batch_seconds": 12.0}})
    distill(parsed)
    assert "in 4 micro-batch(es)" in caplog.text  # a quarter took 60 of 100, so a half would not fit
    monkeypatch.setattr(workbench.training.stage, "peak_of", lambda work, _: (work(), Peak(1, 100))[1])
    distill(recipe("fits", stages={"decoder": {**DECODER, "epochs": 1, "batch_seconds": 12.0}}))
    assert "in 1 micro-batch(es)" in caplog.text


def test_batches_prepared_by_workers_are_the_same(recipe):
    plain, ahead = recipe("plain"), recipe("ahead", loader_workers=2)
    distill(plain)
    distill(ahead)
    assert same(weights(plain.output), weights(ahead.output))


def test_a_stage_stops_after_its_steps(recipe):
    parsed = recipe(stages={"decoder": {**DECODER, "epochs": 50, "max_steps": 5}})
    distill(parsed)
    assert json.loads((parsed.output / "scores.json").read_text())["steps"] == 5


def test_a_student_of_another_checkpoint_learns_too(recipe, tmp_path):
    first = recipe("first", stages={"encoder": {**ENCODER, "epochs": 1}})
    student = distill(first)
    second = recipe("second", stages={"decoder": DECODER}, student={"init_from": str(student)})
    distill(second)
    kept = weights(second.output)
    assert torch.equal(kept["model.encoder.conv1.weight"], weights(first.output)["model.encoder.conv1.weight"])


def test_a_student_that_cannot_learn_from_the_teacher_is_refused(recipe, tiny_checkpoint, tmp_path):
    with_more_tokens(tiny_checkpoint, tmp_path / "other")
    with pytest.raises(UserError, match=r"student vocabulary .* they use different tokenizers"):
        distill(recipe(student={"init_from": str(tmp_path / "other")}))


def test_parts_of_a_step_share_its_clips_between_them():
    clips = open_corpus("prompts-en", "train")
    for step in plan_steps(clips, 24.0, 0.2, (1, 0)):
        parts = [step.micro_batch(n, 4) for n in range(4)]
        assert sorted(i for part in parts for i in part) == sorted(step.clips)
        assert step.seconds == max(clips[i].seconds for i in step.clips)


def launch(parsed, tmp_path, *, processes, sharded=False, until=None):
    """Run a recipe in so many gloo processes, as `accelerate launch` runs it on several GPUs; `sharded` with FSDP 2, and until a step."""
    path = tmp_path / "launched.yaml"
    parsed.save(path)
    program = [str(SHARDED), str(path), *([] if until is None else [str(until)])]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone",
               *(program if sharded else ["-m", "workbench", "distill", str(path)])]  # fmt: skip
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=env)
    assert done.returncode == 0, done.stderr[-9000:]


def losses(folder):
    return figures(folder, "loss")


def figures(folder, name):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


SHARDED = Path(__file__).with_name("sharded.py")


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP"])
def test_two_processes_have_the_loss_curve_of_one(recipe, cache, tmp_path, sharded):
    stages = {"encoder": {**ENCODER, "micro_batches": 2}, "decoder": {**DECODER, "micro_batches": 2}}
    two = recipe("two", stages=stages)
    launch(two, tmp_path, processes=2, sharded=sharded)
    assert len(list((cache / "targets").glob("*/index-*.jsonl"))) == 2  # each has labelled its share
    one = recipe("one", stages=stages)
    distill(one)
    assert len(losses(two.output)) > 5
    assert losses(two.output) == pytest.approx(losses(one.output), rel=2e-3)
    found, expected = weights(two.output), weights(one.output)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-3, rtol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["superloss", "homoscedastic"])
@pytest.mark.parametrize("changes", [{"micro_batches": 4}, {"micro_batches": 2, "on_policy": {"fraction": 0.6}}],
                         ids=["stand-ins", "on-policy"])  # fmt: skip
def test_the_state_of_a_weighting_is_of_the_whole_step_in_two_processes(recipe, tmp_path, name, changes):
    """Four micro-batches of two or three clips have stand-ins; on-policy ones may be all that a process has of a step."""
    stages = {"decoder": {**DECODER, "weighting": {"name": name}, **changes}}
    two, one = recipe("two", stages=stages), recipe("one", stages=stages)
    launch(two, tmp_path, processes=2)
    distill(one)
    # SuperLoss's very first threshold is the micro-batch's own in both
    for figure in ("loss", "alpha_mean", "task_weight_mean", "task", "disagreement"):
        assert figures(two.output, figure) == pytest.approx(figures(one.output, figure), rel=5e-3), figure
    assert len(figures(two.output, "alpha_mean")) > 1


@pytest.mark.slow
def test_learnt_weights_of_two_processes_are_joined(recipe, tmp_path):
    almkd = {"name": "almkd", "start_epoch": 1, "update_every": 1, "steps_per_update": 1, "weight_learning_rate": 0.05}
    run = recipe("two", stages={"decoder": {**DECODER, "epochs": 3, "weighting": almkd}})
    launch(run, tmp_path, processes=2)
    rows = pq.read_table(run.output / "weights.parquet").to_pylist()
    last = max(row["step"] for row in rows) - 1
    before = {row["id"]: row["alpha"] for row in rows if row["step"] <= 2}
    assert any(row["alpha"] != before.get(row["id"]) for row in rows if row["step"] >= last)


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path):
    from workbench.run import checkpoints

    checkpoint = tmp_path / "step-00000007"
    checkpoint.mkdir()
    earlier = {"stage": 1, "round": 2, "stream_pass": 0, "stream_window": 3, "batch": 4, "stage_step": 5, "step": 7, "parts": 2,
               "seconds": 1.5, "teacher_seconds": 2.5, "best": {"wer": 3.0}, "encoder_seconds": 3.5, "look_ahead_seconds": 0.25,
               "sampling_seconds": 0.125, "weighting": {"threshold": 0.5}, "itself": True, "teacher_losses": [0.5]}  # fmt: skip
    (checkpoint / "position.json").write_text(json.dumps(earlier))
    assert checkpoints.read_state(checkpoint) == TrainingState(
        TrainingProgress(1, 2, 0, 3, 4, 5, 7, 2, True, [0.5]),
        Timers(1.5, 2.5, 3.5, 0.25, 0.125),
        {"wer": 3.0},
        {"threshold": 0.5},
    )


def test_a_timer_counts_what_fails_too_and_ending_a_stage_keeps_the_runs_steps():
    timers = Timers()
    with pytest.raises(KeyError), timers.timing("training", "look_ahead"):
        raise KeyError
    assert 0 < timers.training == timers.look_ahead < 1
    assert timers.encoder == 0
    progress = TrainingProgress(stage=1, epoch=3, batch=2, stage_step=9, step=20, micro_batches=4, self_teaching=True)
    progress.end_stage()
    assert progress == TrainingProgress(stage=2, step=20)


def test_checkpoints_keep_the_state(tmp_path):
    from workbench.run import checkpoints

    progress = TrainingProgress(stage=1, epoch=2, stream_window=3, step=7, micro_batches=4, teacher_losses=[0.5])
    state = TrainingState(progress, Timers(2.0, sampling=0.5), {"wer": 3.0, "step": 5}, {"threshold": 0.25})
    checkpoints.save(tmp_path, state, {"model": {"w": torch.ones(2)}})
    latest = checkpoints.latest(tmp_path)
    assert checkpoints.read_state(latest) == state
    assert load_file(latest / "model.safetensors")["w"].tolist() == [1, 1]
    (latest / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be loaded"):
        checkpoints.load_tensors(latest, "model")


def test_nothing_of_a_run_is_left_in_the_folder_but_what_is_promised(recipe):
    parsed = recipe()
    distill(parsed)
    assert {p.name for p in Path(parsed.output).iterdir()} == {
        "recipe.yaml", "inputs.json", "metrics.jsonl", "weights.parquet", "scores.json", "student",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ({"fsdp_plugin": SimpleNamespace(fsdp_version=1)}, "fsdp_version: 2"),
        (
            {"fsdp_plugin": SimpleNamespace(fsdp_version=2)},
            "stages.s.quantization: the weights of a sharded student cannot be rounded",
        ),
        ({"deepspeed_plugin": SimpleNamespace()}, "DeepSpeed is not supported; use FSDP 2"),
    ],
)
def test_what_cannot_be_sharded_is_refused(recipe, plugins, message):
    rounded = {**DECODER, "quantization": {"decoder": "q4"}}
    with pytest.raises(UserError, match=message):
        check_sharding(SimpleNamespace(state=SimpleNamespace(**plugins)), recipe(stages={"s": rounded}))
