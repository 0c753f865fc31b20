"""The corpus's audio, decoded once."""

import json
import logging
import multiprocessing

import numpy as np
import pytest
import torch

from workbench.audio.decode import write_wav
from workbench.cache.decoded_audio import AudioCache, to_samples, to_wave
from workbench.cache.teacher_targets import TargetCache, TargetSettings, compute_targets
from workbench.cache.tensor_shards import ShardStore
from workbench.core.errors import UserError
from workbench.corpus import Utterance, open_corpus
from workbench.corpus.sources import training_set
from workbench.models.whisper.family import Whisper
from workbench.training.trainer import distill


@pytest.fixture
def clips():
    return open_corpus("prompts-en", "train", 5)


def filled(clips, folder=None):
    audio = AudioCache(folder)
    keys = [audio.key(clip) for clip in clips]
    audio.check(clips, keys)
    audio.fill(clips, keys)
    return audio, keys


def test_what_is_read_is_what_was_decoded(cache, clips):
    audio, keys = filled(clips)
    for clip, key in zip(clips, keys, strict=True):
        samples = audio.read(key)
        assert samples.dtype == torch.int16
        np.testing.assert_allclose(to_wave(samples).numpy(), np.clip(clip.wave(), -1, 1), atol=0.51 / 32767)
    assert to_samples(np.array([-2.0, -1.0, 0.0, 1.0, 2.0], np.float32)).tolist() == [-32767, -32767, 0, 32767, 32767]


def test_a_clip_is_kept_once_whatever_is_said_of_it(cache, clips, monkeypatch):
    filled(clips)
    monkeypatch.setattr(Utterance, "wave", lambda self: pytest.fail(f"{self.id} is decoded again"))
    others = [Utterance(f"other {c.id}", c.audio, "another text", c.seconds, "es") for c in clips]
    audio, keys = filled([*others, *others])
    assert len(audio.store.index) == len(set(keys)) == len(clips)


def test_processes_share_the_work(cache, clips):
    for rank in range(2):
        audio = AudioCache()
        keys = [audio.key(clip) for clip in clips]
        audio.fill(clips, keys, rank, 2)
    audio.store.reload()
    assert set(audio.store.index) == set(keys)
    assert {e["shard"][:9] for e in audio.store.index.values()} == {"shard-000", "shard-001"}


def test_two_runs_that_fill_it_at_once_keep_each_others_clips(cache, clips):
    """Each knows what was there when it opened the cache."""
    first, second = AudioCache(), AudioCache()
    for audio, mine in ((first, clips[:2]), (second, clips[1:4])):
        audio.add([(audio.key(clip), clip.wave()) for clip in mine])
    found = AudioCache()
    assert len(found.store.index) == 4
    for clip in clips[:4]:
        assert torch.equal(found.read(found.key(clip)), to_samples(clip.wave()))


def add_alone(folder, ids):
    clips = open_corpus("prompts-en", "train", 5)
    audio = AudioCache(folder)
    for i in ids:
        audio.add([(audio.key(clips[i]), clips[i].wave())])


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path, clips):
    spawn = multiprocessing.get_context("spawn")
    at_work = [spawn.Process(target=add_alone, args=(tmp_path, ids)) for ids in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0])]
    for process in at_work:
        process.start()
    for process in at_work:
        process.join()
        assert process.exitcode == 0
    audio = AudioCache(tmp_path)
    assert [torch.equal(audio.read(audio.key(clip)), to_samples(clip.wave())) for clip in clips] == [True] * 5


def test_a_row_s_length_is_that_of_the_recording_whatever_the_speed(cache, tmp_path):
    """2.47 s where the row says 2.0 is within the tolerance at every speed."""
    write_wav(tmp_path / "clip.wav", np.sin(np.arange(39_520) / 20).astype(np.float32))
    row = {"id": "a", "audio": "clip.wav", "text": "yes", "duration": 2.0, "split": "train"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    clips = training_set(str(tmp_path / "m.jsonl"), None, speeds=[0.9, 1.1])
    assert len(clips) == 3
    filled(clips)
    filled(clips)  # what is known is checked, too


def test_what_is_read_again_is_what_was_added(tmp_path):
    """The index is read from where it was read before; lines that a kill cut short count when they are whole."""
    first, second = ShardStore(tmp_path), ShardStore(tmp_path)
    for key in "abc":
        first.write(0, [({"key": key}, {"x": torch.zeros(3)})])
        second.reload()
        assert key in second
    index = tmp_path / "index-000.jsonl"
    content = index.read_bytes()
    index.write_bytes(content[:-20])  # of a line that is being written
    third = ShardStore(tmp_path)
    assert "c" not in third
    index.write_bytes(content)
    third.reload()
    assert "c" in third
    next(tmp_path.glob("shard-*")).unlink()
    third.reload()
    assert len(third.index) == 2


def test_what_the_teacher_heard_is_not_decoded_again(cache, clips, tiny_checkpoint, monkeypatch):
    family, audio = Whisper(tiny_checkpoint), AudioCache()
    settings = TargetSettings("teacher", 4, 1.0, 0.2)
    compute_targets(family.load(), family, clips, TargetCache(settings), batch_clips=2, audio=audio)
    monkeypatch.setattr(Utterance, "wave", lambda self: pytest.fail(f"{self.id} is decoded again"))
    filled(clips)


def test_a_length_that_a_row_states_wrongly_is_refused_though_the_audio_is_known(cache, tmp_path):
    write_wav(tmp_path / "clip.wav", np.sin(np.arange(32_000) / 20).astype(np.float32))
    row = {"id": "a", "audio": "clip.wav", "text": "yes", "duration": 2.0, "split": "train"}
    for duration in (2.0, 9.0):
        (tmp_path / "m.jsonl").write_text(json.dumps({**row, "duration": duration}) + "\n")
        clips = open_corpus(str(tmp_path / "m.jsonl"), "train")
        if duration == 2.0:
            filled(clips)
        else:
            with pytest.raises(UserError, match=r"m.jsonl:1: .*field 'duration' is 9, but the recording lasts 2.00 s"):
                filled(clips)


def test_a_second_temperature_stores_no_audio(recipe, cache):
    distill(recipe("one"))
    before = {p: p.stat().st_mtime_ns for p in cache.glob("audio/*/*")}
    assert before
    targets = {"top_k": 8, "allow_large_tail": True, "temperature": 2.0}
    distill(recipe("two", targets=targets))
    assert {p: p.stat().st_mtime_ns for p in cache.glob("audio/*/*")} == before
    assert len(list(cache.glob("targets/*"))) == 2


def test_targets_that_hold_their_audio_are_read(recipe, cache, caplog):
    """A clip's audio was kept among its targets: these hold, and the audio is decoded into the cache of its own."""
    from safetensors.torch import load_file, save_file

    from workbench.cache.checksums import file_crc32, line_with_checksum, read_checked_rows

    first = distill(recipe("first"))
    for shard in cache.glob("targets/*/*.safetensors"):
        tensors = load_file(shard)
        waves = {f"{key.split('.')[0]}.wave": torch.zeros(4, dtype=torch.int16) for key in tensors}
        save_file({**tensors, **waves}, shard)
        index = shard.parent / "index-000.jsonl"
        rows = [{k: v for k, v in row.items() if k != "line_crc32"} for row in read_checked_rows(index)]
        index.write_text("".join(line_with_checksum({**row, "crc32": file_crc32(shard)}) for row in rows))
    for path in cache.glob("audio/*/*"):
        path.unlink()
    with caplog.at_level(logging.INFO, "workbench"):
        second = distill(recipe("second"))
    assert "clips are cached" in caplog.text
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
