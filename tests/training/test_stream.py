"""Training on a stream: windows of it are labelled, trained on and dropped, and a killed run goes on in its window."""

import json
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Features, Value

import workbench.cache.teacher_targets
import workbench.training.stage
from tests.conftest import DECODER, ENCODER, slow_but
from tests.training.test_targets_and_training import killed_at, same, weights
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.corpus.hub import Stream
from workbench.training.trainer import distill

pytestmark = pytest.mark.usefixtures("quick_streams")


@pytest.fixture
def dataset(tmp_path):
    """A local dataset of short clips in two Parquet files, as a hub would stream it."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    schema = Features({"id": Value("string"), "audio": Audio(), "text": Value("string")}).arrow_schema
    for split, count in (("train", 24), ("validation", 3)):
        clips = [u for u in open_corpus("prompts-en", split) if u.seconds < 2][:count]
        for part in range(2):
            chosen = clips[part::2]
            columns = {"id": [u.id for u in chosen], "text": [u.text for u in chosen],
                       "audio": [{"bytes": u.audio.read_bytes(), "path": None} for u in chosen]}  # fmt: skip
            pq.write_table(pa.table(columns, schema=schema), folder / f"{split}-0000{part}-of-00002.parquet")
    return folder


def ids(windows):
    return [[u.id for u in window] for window in windows]


def joined(lists):
    return list(chain.from_iterable(lists))


def test_windows_hold_the_stream_once_and_can_be_entered_anywhere(dataset):
    def windows(first=0, seed=1, rank=0, ranks=1):
        return ids(Stream(f"hf:{dataset}", seed, rank, ranks, 8.0).windows(first))

    whole = windows()
    assert len(whole) > 2
    assert len(joined(whole)) == 24
    assert len(set(joined(whole))) == 24
    assert windows(first=2) == whole[2:]
    assert windows(seed=2) != whole or windows(seed=3) != whole  # the files' order is the seed's
    shares = [joined(windows(rank=r, ranks=2)) for r in range(2)]
    assert sorted(joined(shares)) == sorted(joined(whole))


def test_a_clip_keeps_its_id_when_the_stream_is_shuffled_anew(tmp_path, dataset):
    """Weights are learnt by id: without an `id` column, a row's number would give them to another clip in the next pass."""
    for path in dataset.glob("train-*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns("id"), path)

    def texts(seed):
        return {u.id: u.text for window in Stream(f"hf:{dataset}", seed, 0, 1, 8.0).windows() for u in window}

    first = texts(1)
    orders = [list(texts(seed)) for seed in range(2, 6)]
    assert any(order != list(first) for order in orders)
    assert all(texts(seed) == first for seed in range(2, 6))


def streamed(recipe, dataset, name, **changes):
    stages = {"encoder": {**ENCODER, "max_steps": 4}, "decoder": {**DECODER, "max_steps": 6}}
    return recipe(name, corpus=f"hf:{dataset}", stream={"window_hours": 8 / 3600}, stages=stages, **changes)


def test_a_stream_is_trained_on_a_window_at_a_time(recipe, dataset, cache):
    parsed = streamed(recipe, dataset, "run")
    distill(parsed)
    rows = [json.loads(line) for line in (parsed.output / "metrics.jsonl").read_text().splitlines()]
    assert [r["stage"] for r in rows if "loss" in r] == ["encoder"] * 4 + ["decoder"] * 6
    assert len([r for r in rows if "validation_wer" in r]) >= 2  # after each window
    assert not (cache / "targets").exists()  # nothing of a stream stays
    assert not list(parsed.output.glob("stream-*"))


def test_the_teacher_does_not_run_for_a_student_that_teaches_itself(recipe, dataset, monkeypatch):
    asked = []
    passing = workbench.cache.teacher_targets._teacher_pass
    monkeypatch.setattr(
        workbench.cache.teacher_targets, "_teacher_pass", lambda *a: asked.append(len(a[2])) or passing(*a)
    )
    askd = {"name": "askd", "phase1": 0.4}
    stages = {"decoder": {**DECODER, "max_steps": 12, "weighting": askd}}
    parsed = recipe("askd", corpus=f"hf:{dataset}", stream={"window_hours": 8 / 3600}, stages=stages)
    distill(parsed)
    rows = [json.loads(line) for line in (parsed.output / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in rows if "loss" in r]
    assert len(steps) == 12
    with_teacher = sum(asked)
    assert "disagreement" in steps[0]
    assert "disagreement" not in steps[-1]
    always = recipe("fixed", corpus=f"hf:{dataset}", stream={"window_hours": 8 / 3600},
                    stages={"decoder": {**DECODER, "max_steps": 12}})  # fmt: skip
    asked.clear()
    distill(always)
    assert 0 < with_teacher < sum(asked)


@pytest.mark.parametrize("kill", slow_but([5], [2, 5, 8]))
def test_a_killed_stream_resumes_to_the_same_bits(recipe, dataset, monkeypatch, kill):
    whole = streamed(recipe, dataset, "whole")
    distill(whole)
    killed = streamed(recipe, dataset, "killed", checkpoint_minutes=1e-9)
    with killed_at(monkeypatch, kill):
        distill(killed)
    distill(killed)
    assert same(weights(whole.output), weights(killed.output))


def test_a_stream_that_ends_before_weights_are_learnt_says_so(recipe, dataset, caplog):
    almkd = {"name": "almkd", "start_epoch": 1, "update_every": 1, "steps_per_update": 1}
    stages = {"decoder": {**DECODER, "epochs": 2, "max_steps": 2, "weighting": almkd}}
    distill(recipe("run", corpus=f"hf:{dataset}", stream={"window_hours": 8 / 3600}, stages=stages))
    assert "stages.decoder.weighting: no weights were learnt" in caplog.text


def test_a_stream_killed_after_its_last_window_is_resumed(recipe, dataset, monkeypatch):
    """The stream ends before the stage's steps do; nothing is left to train on, and the run still comes to its end."""
    stages = {"decoder": {**DECODER, "max_steps": 1000, "epochs": 1}}
    how = {
        "corpus": f"hf:{dataset}",
        "stream": {"window_hours": 8 / 3600},
        "stages": stages,
        "validate_every": 100,
    }
    whole = recipe("whole", **how)
    distill(whole)
    last = workbench.training.stage.StageTrainer.save
    saved = []

    def dying(loop):
        if loop.state.progress.stage == 1:  # the stage's last save
            raise KeyboardInterrupt
        last(loop)
        saved.append(loop.state.progress.stream_window)

    monkeypatch.setattr(workbench.training.stage.StageTrainer, "save", dying)
    killed = recipe("killed", **how)
    with pytest.raises(KeyboardInterrupt):
        distill(killed)
    assert saved[-1] == len(saved)  # after the last window
    monkeypatch.setattr(workbench.training.stage.StageTrainer, "save", last)
    distill(killed)
    assert same(weights(whole.output), weights(killed.output))
    rows = [json.loads(line) for line in (killed.output / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert [row["step"] for row in rows if "validation_wer" in row][-1] == steps[-1]  # the last student was looked at


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": {"s": DECODER}}, r"stages.s.max_steps is missing"),
        ({"corpus": "prompts-en", "stages": {"s": {**DECODER, "max_steps": 1}}}, r"cannot be streamed; expected hf:ID"),
        (
            {"stages": {"s": {**DECODER, "max_steps": 1}}, "augment": {"speed_factors": [1.1]}},
            r"a stream takes neither",
        ),
    ],
)
def test_what_a_stream_cannot_do_is_said_with_the_recipe(recipe, changes, message):
    with pytest.raises(UserError, match=message):
        recipe(stream={"window_hours": 1}, **{"corpus": "hf:x", **changes})
