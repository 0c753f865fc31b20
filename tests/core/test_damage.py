"""Bits that flip and disks that fill: found, said in one line, and computed anew where that can be done."""

import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tests.conftest import DECODER
from tests.training.test_targets_and_training import killed_at, same, targets, weights  # noqa: F401  targets is a fixture
from workbench.cache.checksums import line_with_checksum, read_checked_rows
from workbench.cache.teacher_targets import TargetCache, compute_targets
from workbench.cache.tensor_shards import ShardStore
from workbench.core.disk import disk_errors
from workbench.core.errors import UserError
from workbench.run import checkpoints
from workbench.training.trainer import distill

pytestmark = pytest.mark.filterwarnings("ignore")


def damage(path, cut=False):
    """Flip a bit in the middle of a file, or cut it there."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 4
    path.write_bytes(content[:middle] if cut else content)


@contextmanager
def full_disk(size=20_000):
    """Files cannot grow beyond so many bytes, which the system refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("cut", [False, True], ids=["flipped", "cut"])
def test_a_damaged_shard_is_named_and_computed_anew(targets, cut, caplog):  # noqa: F811
    family, teacher, clips, settings = targets
    keys = [settings.key(u) for u in clips]
    compute_targets(teacher, family, clips, TargetCache(settings))
    shard = next(settings.folder().glob("*.safetensors"))
    content = shard.read_bytes()
    damage(shard, cut)
    with pytest.raises(UserError, match=r"shard-000-000000.safetensors: damaged .*run the same command again"):
        TargetCache(settings).read(keys[0])
    cache = TargetCache(settings)
    cache.check(keys)
    assert f"damaged; its {len(clips)} items are recomputed" in caplog.text
    compute_targets(teacher, family, clips, cache)
    assert next(settings.folder().glob("*.safetensors")).read_bytes() == content
    plain = TargetCache(replace(settings, states=False))  # reads them as well
    damage(next(settings.folder().glob("*.safetensors")), cut)
    plain.check(keys)
    assert not any(key in plain for key in keys)


def test_a_damaged_cache_trains_the_same_student(recipe, cache, caplog):
    """The last run reads targets and a frozen encoder's states with a flipped bit in each."""
    whole = recipe("whole", stages={"decoder": DECODER})
    distill(whole)
    shards = sorted(cache.glob("*/*/*.safetensors"))
    assert {shard.parent.parent.name for shard in shards} == {"audio", "targets", "encoded"}
    for shard in shards:
        damage(shard)
    again = recipe("again", stages={"decoder": DECODER})
    distill(again)
    assert caplog.text.count("items are recomputed") == len(shards)
    assert same(weights(whole.output), weights(again.output))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "sha256.json"])
def test_a_damaged_checkpoint_is_named(recipe, monkeypatch, name):
    parsed = recipe(checkpoint_minutes=1e-9)
    with killed_at(monkeypatch, 2):
        distill(parsed)
    (path,) = parsed.output.glob(f"checkpoints/step-*/{name}")
    damage(path)
    with pytest.raises(UserError, match=r"checkpoints/step-.*(SHA-256|missing|not valid)"):
        distill(parsed)


def test_a_full_disk_while_a_checkpoint_is_written_leaves_the_one_before(recipe, monkeypatch, tmp_path):
    parsed = recipe(checkpoint_minutes=1e-9)
    with killed_at(monkeypatch, 2):
        distill(parsed)
    before = checkpoints.latest(parsed.output / "checkpoints")
    with full_disk(), pytest.raises(UserError, match=r"step-0{7}\d: cannot be written .*free some space"):
        distill(parsed)
    assert [p.name for p in (parsed.output / "checkpoints").iterdir()] == [before.name]
    distill(parsed)


def test_a_full_disk_while_targets_are_written_is_one_line(targets):  # noqa: F811
    family, teacher, clips, settings = targets
    with full_disk(), pytest.raises(UserError, match=r"shard-000-000000.safetensors: cannot be written"):
        compute_targets(teacher, family, clips, TargetCache(settings))
    assert not list(settings.folder().iterdir())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["targets", "audio"])
def test_what_is_damaged_during_a_run_is_one_line(recipe, cache, monkeypatch, workers, kind):
    check = TargetCache.check

    def damaged_after(self, keys, rank=0, ranks=1):
        check(self, keys, rank, ranks)
        for shard in cache.glob(f"{kind}/*/*.safetensors"):
            damage(shard)

    distill(recipe("first"))
    monkeypatch.setattr(TargetCache, "check", damaged_after)
    monkeypatch.setattr(ShardStore, "drop_damaged", lambda *_: None)
    with pytest.raises(UserError, match=r"^/[^\n]*shard-000-000000.safetensors: damaged [^\n]*$"):
        distill(recipe("second", loader_workers=workers))


def fill(folder, key="a", value=1.0):
    store = ShardStore(folder)
    store.write(0, [({"key": key, "task_loss": value}, {"x": torch.full((100,), value)})])
    return store


def test_a_damaged_line_of_the_index_does_not_count(tmp_path):
    fill(tmp_path)
    index = tmp_path / "index-000.jsonl"
    index.write_bytes(index.read_bytes().replace(b'"task_loss": 1.0', b'"task_loss": 3.0'))
    assert "a" not in ShardStore(tmp_path)


def test_shards_without_checksums_are_removed_and_their_numbers_not_given_again(tmp_path, caplog):
    fill(tmp_path)
    index = tmp_path / "index-000.jsonl"
    index.write_text('{"key": "a", "task_loss": 1.0, "shard": "shard-000-000000.safetensors"}\n')  # as 0.1 wrote it
    store = ShardStore(tmp_path)
    store.check(["a"])
    assert "a" not in store
    assert "without a checksum" in caplog.text
    assert not list(tmp_path.glob("*.safetensors"))
    fill(tmp_path, "b", 2.0)
    damage(next(tmp_path.glob("*.safetensors")))
    store = ShardStore(tmp_path)
    store.check(["b"])
    store = fill(tmp_path, "c", 3.0)
    assert store.index["c"]["shard"] == "shard-000-000001.safetensors"  # a line of the damaged 0 is still there
    assert "b" not in ShardStore(tmp_path)


def test_each_process_checks_a_share(tmp_path):
    for n in range(8):
        fill(tmp_path, f"k{n}", float(n))
    for path in tmp_path.glob("*.safetensors"):
        damage(path)
    store = ShardStore(tmp_path)
    keys = [f"k{n}" for n in range(8)]
    store.drop_damaged(keys, 0, 2)
    left = len(list(tmp_path.glob("*.safetensors")))
    assert 0 < left < 8
    store.drop_damaged(keys, 1, 2)
    assert not list(tmp_path.glob("*.safetensors"))


def test_sealed_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"a": "ü \u2028", "b": [0.1, None]}, {"c": {}}, {"d": 1}]
    lines = [line_with_checksum(row) for row in rows]
    path.write_text(lines[0] + lines[1].replace("c", "e") + "torn" + "\n" + lines[2] + lines[0][:-5])
    assert list(read_checked_rows(path)) == [rows[0], rows[2]]


def test_a_full_disk_is_one_line_whichever_library_writes(tmp_path, tiny_checkpoint):
    from safetensors.torch import save_file
    from transformers import WhisperForConditionalGeneration, WhisperTokenizerFast

    model = WhisperForConditionalGeneration.from_pretrained(tiny_checkpoint)
    tokenizer = WhisperTokenizerFast.from_pretrained(tiny_checkpoint)
    writers = [
        lambda path: save_file({"x": torch.zeros(100_000)}, path),
        lambda path: model.save_pretrained(path),
        lambda path: tokenizer.save_pretrained(path),
        lambda path: path.write_bytes(b"x" * 100_000),
    ]
    for n, write in enumerate(writers):
        path = tmp_path / str(n)
        message = r"/\d: cannot be written \(.*File too large.*\); free some space"
        with full_disk(1000), pytest.raises(UserError, match=message), disk_errors(path):
            write(path)
    with pytest.raises(ValueError, match="other"), disk_errors(tmp_path):
        raise ValueError("other")
