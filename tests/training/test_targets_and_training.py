"""Training on a tiny model and real speech: targets are cached, runs resume, every switch works on the CPU."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

import workbench.training.stage
from tests.conftest import DECODER, ENCODER, slow_but
from workbench.cache.teacher_targets import FORMAT, TargetCache, TargetSettings, compute_targets
from workbench.core.errors import UserError
from workbench.core.hashing import hash_json
from workbench.corpus import open_corpus
from workbench.losses.objectives import cross_entropy
from workbench.models.protocol import IGNORE_INDEX
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.passes import decoder_logits, encode
from workbench.training.trainer import distill


def weights(folder):
    return load_file(folder / "student" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@contextmanager
def killed_at(monkeypatch, number):
    """A run inside ends after this step, before anything more is written."""
    step = workbench.training.stage.StageTrainer.step

    def dying(self, *args):
        step(self, *args)
        if self.state.progress.step == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(workbench.training.stage.StageTrainer, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        yield
    monkeypatch.setattr(workbench.training.stage.StageTrainer, "step", step)


def resumes_to_the_same_bits(recipe, monkeypatch, **given):
    """A run that is killed after its second step and resumed writes the weights of one that is not; returns the latter."""
    whole, killed = recipe("whole", **given), recipe("killed", **given)
    distill(whole)
    with killed_at(monkeypatch, 2):
        distill(killed)
    distill(killed)
    assert same(weights(whole.output), weights(killed.output))
    return whole


def test_a_run_leaves_what_it_promises(recipe):
    parsed = recipe()
    student = distill(parsed)
    run = parsed.output
    assert WhisperForConditionalGeneration.from_pretrained(student).config.decoder_layers == 2
    assert json.loads((student / "workbench.json").read_text())["length"] == "true"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "task", "distillation", "gradient_norm", "k"} <= set(metrics[-2])
    assert len([m for m in metrics if "validation_wer" in m]) == 2
    rows = pq.read_table(run / "weights.parquet").to_pylist()
    train = open_corpus(parsed.corpus, "train")
    assert {r["id"] for r in rows} == {u.id for u in train}
    assert len(rows) == 3 * len(train)  # an epoch of the encoder, two of the decoder
    scores = json.loads((run / "scores.json").read_text())
    assert scores["teacher"]["sha256"]
    assert scores["validation"]["wer"] >= 0
    assert not (run / "checkpoints").exists()


def test_frozen_parts_stay_and_trained_ones_move(recipe, tiny_checkpoint):
    encoder_only = recipe(stages={"encoder": ENCODER})
    distill(encoder_only)
    teacher = Whisper(tiny_checkpoint).load().state_dict()
    found = weights(encoder_only.output)
    assert torch.equal(found["model.decoder.embed_tokens.weight"], teacher["model.decoder.embed_tokens.weight"])
    assert torch.equal(found["model.encoder.embed_positions.weight"], teacher["model.encoder.embed_positions.weight"])
    assert not torch.equal(found["model.encoder.conv1.weight"], teacher["model.encoder.conv1.weight"])


def test_encoder_matching_brings_the_student_nearer_to_its_teacher(recipe):
    parsed = recipe(stages={"encoder": {**ENCODER, "epochs": 6}})
    distill(parsed)
    matching = [json.loads(line)["matching"] for line in (parsed.output / "metrics.jsonl").read_text().splitlines()]
    assert sum(matching[-2:]) < 0.8 * sum(matching[:2])


@pytest.mark.parametrize("kills", slow_but([[3, 5]], [[2], [3, 5], [1, 4, 6]]))
def test_a_killed_run_resumes_to_the_same_bits(recipe, monkeypatch, kills):
    whole = recipe("whole")
    distill(whole)
    killed = recipe("killed", checkpoint_minutes=1e-9)  # a checkpoint after every step
    for kill in kills:
        with killed_at(monkeypatch, kill):
            distill(killed)
    distill(killed)
    assert same(weights(whole.output), weights(killed.output))
    logs = [(r.output / "metrics.jsonl").read_text() for r in (whole, killed)]
    assert logs[0] == logs[1]
    assert pq.read_table(whole.output / "weights.parquet").equals(pq.read_table(killed.output / "weights.parquet"))


def test_a_finished_run_is_left_alone_and_another_recipe_is_refused(recipe):
    parsed = recipe()
    distill(parsed)
    before = (parsed.output / "student" / "model.safetensors").stat().st_mtime_ns
    distill(parsed)
    assert (parsed.output / "student" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"another recipe"):
        distill(recipe(seed=2))
    distill(recipe(seed=2), restart=True)
    assert (parsed.output / "student" / "model.safetensors").stat().st_mtime_ns > before


def test_a_loss_that_is_not_finite_stops_the_run_with_the_remedy(recipe):
    stages = {"decoder": {**DECODER, "learning_rate": 1e30, "epochs": 8, "max_grad_norm": 1e30}}
    with pytest.raises(UserError, match=r"lower stages.decoder.learning_rate"):
        distill(recipe(stages=stages))


def test_impossible_layers_are_refused_before_work_starts(recipe, cache):
    with pytest.raises(UserError, match=r"the teacher has no layer 7"):
        distill(recipe(student={"decoder_layers": [0, 7]}))
    assert not (cache / "targets").exists()


@pytest.fixture
def targets(tiny_checkpoint, cache, speech):
    family = Whisper(tiny_checkpoint)
    return family, family.load(), open_corpus(str(speech(10)), "train"), TargetSettings("teacher", 8, 2.0, 0.2)


@torch.no_grad()
def test_targets_are_what_the_teacher_says(targets):
    family, teacher, clips, settings = targets
    compute_targets(teacher, family, clips, TargetCache(settings), batch_clips=3)
    found = TargetCache(settings).read(settings.key(clips[1]))
    states = encode(teacher, family.features([clips[1].wave()], 30.0))
    tokens = family.tokens([clips[1].text], [clips[1].language])
    logits = decoder_logits(teacher, states, tokens)
    torch.testing.assert_close(found.top_logits, logits.topk(8).values, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.log_normalizer, (logits / 2.0).logsumexp(-1), atol=1e-3, rtol=1e-3)
    assert found.task_loss == pytest.approx(
        cross_entropy(logits, tokens.labels[tokens.labels != IGNORE_INDEX]).mean().item(), abs=1e-3
    )
    torch.testing.assert_close(found.states.float(), states[0, : len(found.states)], atol=2e-3, rtol=2e-3)
    assert len(found.states) == -(-(len(clips[1].wave()) + 3200) // 320)


@torch.no_grad()
def test_a_length_adaptive_teacher_reads_clips_at_their_own_length(targets, student):
    _, teacher, clips, settings = targets
    family = Whisper(student)  # the same weights, marked as one that wants 0.4 s of silence
    settings = replace(settings, trained_silence=family.trained_silence)
    compute_targets(teacher, family, clips[:2], TargetCache(settings))
    found = TargetCache(settings).read(settings.key(clips[1]))
    states = encode(teacher, family.features([clips[1].wave()], clips[1].seconds + 0.4))
    logits = decoder_logits(teacher, states, family.tokens([clips[1].text], [clips[1].language]))
    torch.testing.assert_close(found.top_logits, logits.topk(8).values, atol=1e-3, rtol=1e-3)
    assert family.input_seconds([clips[1].wave()]) == pytest.approx(clips[1].seconds + 0.4, abs=1e-3)
    assert Whisper(targets[0].folder).input_seconds([clips[1].wave()]) == 30.0
    # another folder than at 30 s, while what was kept before there was a choice stays valid
    assert settings.folder() != targets[3].folder()
    without = [
        v for name, v in targets[3].__dict__.items() if name not in ("trained_silence", "kind", "samples", "frames")
    ]
    assert targets[3].folder().name == hash_json([FORMAT, *without])[:16]


def test_targets_resume_after_a_kill_and_are_never_made_twice(targets, monkeypatch):
    family, teacher, clips, settings = targets
    monkeypatch.setattr("workbench.cache.tensor_shards.SHARD_ITEMS", 2)
    made = []

    def killed(done):
        made.append(done)
        if len(made) == 5:  # inside the third shard: two are whole
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_targets(teacher, family, clips, TargetCache(settings), progress=killed)
    assert sum(settings.key(u) in TargetCache(settings) for u in clips) == 4
    with (settings.folder() / "index-000.jsonl").open("a") as index:
        index.write('{"key": "torn')  # as a kill inside a write leaves it
    made.clear()
    compute_targets(teacher, family, clips, TargetCache(settings), progress=made.append)
    assert sum(made) == len(clips) - 4
    assert all(settings.key(u) in TargetCache(settings) for u in clips)
    assert not list(settings.folder().glob("*.part"))


def test_other_text_teacher_or_settings_are_other_targets(targets):
    _, _, clips, settings = targets
    assert settings.key(clips[0]) != settings.key(replace(clips[0], text="other"))
    assert settings.folder() != replace(settings, teacher="other").folder()
    assert settings.folder() != replace(settings, top_k=4).folder()


def test_targets_with_states_serve_a_run_that_wants_none(targets, monkeypatch):
    family, teacher, clips, settings = targets
    compute_targets(teacher, family, clips, TargetCache(settings))
    plain = TargetCache(replace(settings, states=False))
    monkeypatch.setattr(family, "logits", None)  # nothing is computed again
    compute_targets(teacher, family, clips, plain)
    key = settings.key(clips[0])
    found, expected = plain.read(key), TargetCache(settings).read(key)
    assert found.states is None
    assert torch.equal(found.top_logits, expected.top_logits)
    assert found.task_loss == expected.task_loss
    assert not plain.store.folder.exists()


def test_a_full_disk_is_said_before_the_teacher_runs(targets, monkeypatch):
    family, teacher, clips, settings = targets
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(UserError, match=r"needs about .* MB but only 0 MB are free"):
        compute_targets(teacher, family, clips, TargetCache(settings))
    assert not settings.folder().exists()


def test_learning_curves_go_to_tensorboard(recipe):
    parsed = recipe(trackers=["tensorboard"], stages={"decoder": {**DECODER, "epochs": 1}})
    distill(parsed)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(parsed.output.rglob("events.out.tfevents.*")).parent)).Reload()
    assert {"loss", "k"} <= set(events.Tags()["scalars"])


def test_learning_curves_go_to_trackio(recipe, cache, tmp_path):
    pytest.importorskip("trackio")
    parsed = recipe(trackers=["trackio"], stages={"decoder": {**DECODER, "epochs": 1}})
    parsed.save(tmp_path / "recipe.yaml")
    # its folder is chosen when it is imported
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "workbench", "distill", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (database,) = (tmp_path / "trackio").glob("distill-workbench*.db")
    with sqlite3.connect(database) as connection:
        steps = [json.loads(row) for (row,) in connection.execute("select metrics from metrics order by step")]
    assert {"loss", "k"} <= set(steps[0])
    assert len(steps) == len((parsed.output / "metrics.jsonl").read_text().splitlines())


def test_a_tracker_that_is_not_installed_is_named(recipe, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    parsed = recipe(trackers=["wandb"])
    with pytest.raises(UserError, match=r"'wandb', which is not installed; pip install wandb"):
        distill(parsed)
    assert not parsed.output.exists()


def test_bf16_trains(recipe):
    parsed = recipe(precision="bf16")
    distill(parsed)
    assert all(v.isfinite().all() for v in weights(parsed.output).values())


def losses_with_and_without_compile(recipe, tmp_path, stages):
    """The losses of each step of a run, and those of the same run with compiled steps, each compiled once."""
    eager, compiled = recipe("eager", stages=stages), recipe("compiled", stages=stages, compile=True)
    distill(eager)
    compiled.save(tmp_path / "recipe.yaml")
    # a process of its own: torch.compile wants setuptools' distutils, and other tests have imported Python's
    command = [sys.executable, "-m", "workbench", "distill", str(tmp_path / "recipe.yaml")]
    env = {**os.environ, "TORCH_LOGS": "recompiles"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    # shapes differ from step to step; a graph for each would take minutes
    assert done.stderr.count("Recompiling function") <= 2, done.stderr
    return [[json.loads(line)["loss"] for line in (r.output / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
            for r in (eager, compiled)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_step_computes_the_same(recipe, tmp_path):
    eager, compiled = losses_with_and_without_compile(recipe, tmp_path, {"decoder": {**DECODER, "epochs": 1}})
    assert eager == pytest.approx(compiled, rel=1e-3)
