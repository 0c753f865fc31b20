"""The store of targets and states, and the memory of hashes."""

import os

import pytest
import torch

from workbench.cache.tensor_shards import OPEN_SHARDS, ShardStore, missing_by_shard
from workbench.core import hashing
from workbench.core.hashing import cached_sha256, sha256


def fill(store, rank, keys):
    store.write(rank, [({"key": k, "n": i}, {"x": torch.full((3,), float(i))}) for i, k in enumerate(keys)])


def test_processes_write_beside_each_other_and_see_it_after_a_reload(tmp_path):
    first, second = ShardStore(tmp_path), ShardStore(tmp_path)
    fill(first, 0, ["a", "b"])
    fill(second, 1, ["c"])
    assert "c" not in first
    first.reload()
    assert [k in first for k in "abc"] == [True] * 3
    assert first.read("b", ["x"])[0].tolist() == [1.0] * 3
    fill(first, 0, ["d"])
    assert len(list(tmp_path.glob("shard-000-*"))) == 2


def test_what_is_read_does_not_hold_its_file(tmp_path):
    store = ShardStore(tmp_path)
    for n in range(OPEN_SHARDS + 5):
        fill(store, 0, [f"k{n}"])
    kept = [store.read(f"k{n}", ["x"])[0] for n in range(OPEN_SHARDS + 5)]
    assert len(store._open) == OPEN_SHARDS
    for shard in tmp_path.glob("*.safetensors"):
        shard.unlink()
    assert all(t.tolist() == [0.0] * 3 for t in kept)


def test_shards_are_cut_from_the_whole_list(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.cache.tensor_shards.SHARD_ITEMS", 4)
    store = ShardStore(tmp_path)
    keys = [f"k{i}" for i in range(10)]
    assert list(missing_by_shard(keys, store)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    fill(store, 0, keys[:4])
    fill(store, 0, [keys[5]])
    assert list(missing_by_shard(keys, store)) == [[4, 6, 7], [8, 9]]


def test_a_file_is_hashed_again_only_when_it_changes(tmp_path, cache, monkeypatch):
    path = tmp_path / "clip.wav"
    path.write_bytes(b"one")
    assert cached_sha256(path) == sha256(path)
    hashing._known_hashes.cache_clear()  # as in the next run
    monkeypatch.setattr(hashing, "sha256", lambda _: pytest.fail("hashed again"))
    cached_sha256(path)
    monkeypatch.undo()
    monkeypatch.setenv("WORKBENCH_CACHE", str(cache))
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert cached_sha256(path) == sha256(path)
    with (cache / "hashes.tsv").open("a") as file:
        file.write("torn")
    hashing._known_hashes.cache_clear()
    assert cached_sha256(path) == sha256(path)
