"""Tensors on disk by key: safetensors shards with an index beside them, written as they come.

A shard is whole or absent, and a line of index-RANK.jsonl is appended only after its shard is whole, so a kill costs the
shard being filled. Each process of a distributed run writes shards of its own.

Every line has a checksum, of itself and of its shard. A shard is checked once in a process, before anything of it is used;
one that is damaged, or that an earlier version wrote without a checksum, is removed and its items are recomputed.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict, cast

from torch import Tensor

from workbench.cache.checksums import checked_rows, file_crc32, line_with_checksum
from workbench.core.atomic import atomic_path
from workbench.core.disk import disk_errors
from workbench.core.errors import UserError
from workbench.core.locks import output_lock
from workbench.core.machine.distributed import distributed_output_lock, wait_for_all
from workbench.core.tensor_files import TensorFile

log = logging.getLogger("workbench")
SHARD_ITEMS = 32
OPEN_SHARDS = 4  # pages read of an open shard count as this process's memory; opening one again takes a millisecond
AGAIN = "run the same command again: what it holds is recomputed"


class Keys(Protocol):
    """Tells which items are already cached."""

    def __contains__(self, key: str, /) -> bool: ...


class Item(TypedDict):
    """What is recorded about an item when it is written."""

    key: str  # of what the item was computed from
    id: NotRequired[str]  # of the clip, for people
    task_loss: NotRequired[float]  # of the teacher's targets: its mean cross-entropy
    samples: NotRequired[int]  # of decoded audio: its length
    seconds: NotRequired[list[float]]  # of a batch of encoder states: the lengths of its clips


class IndexEntry(Item):
    """A line of an index."""

    shard: str  # name of the file that holds the item
    crc32: int  # of that file


class ShardStore:
    """A folder of shards, read an item at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, IndexEntry] = {}
        self._read: dict[str, int] = {}  # bytes of each index that were read
        self._named: set[str] = set()  # shards that the index names, including those that were removed
        self._sound: set[str] = set()  # shards that were checked
        self._open: OrderedDict[str, TensorFile] = OrderedDict()
        self.reload()

    def reload(self) -> None:
        """Read what other processes have added to the index, and drop what they have removed."""
        there = {path.name for path in self.folder.glob("shard-*.safetensors")}
        if not self._named <= there:
            self.index = {key: entry for key, entry in self.index.items() if entry["shard"] in there}
        for path in sorted(self.folder.glob("index-*.jsonl")):
            for entry in checked_rows(self._added(path)):
                self._named.add(entry["shard"])
                if entry["key"] not in self.index and entry["shard"] in there:
                    self.index[entry["key"]] = cast("IndexEntry", entry)  # as `write` made it

    def _added(self, index: Path) -> bytes:
        """The whole lines of an index that were not read yet."""
        begin = self._read.get(index.name, 0)
        with index.open("rb") as file:
            if file.seek(0, 2) < begin:
                begin = 0  # it was deleted and rewritten
            file.seek(begin)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self._read[index.name] = begin + len(lines)
        return lines

    def check(self, keys: Iterable[str], rank: int = 0, world_size: int = 1) -> None:
        """Remove the damaged shards among those of these items, and shards that no index line names, so that their items count as missing.

        All processes of a run must call it, each of which reads its share. It waits until no other run writes there.
        """
        self.drop_damaged(keys, rank, world_size)
        if rank == 0:
            with output_lock(self.folder, wait=True, log_wait=False):
                self.reload()
                self._drop_unnamed()
        if world_size > 1:
            wait_for_all()
        self.reload()

    def _drop_unnamed(self) -> None:
        """Remove shards that no line of the index names. No other process may be writing one."""
        unnamed = [p for p in self.folder.glob("shard-*.safetensors") if p.name not in self._named]
        for path in unnamed:
            path.unlink()
        if unnamed:
            log.warning("%s: %d file(s) without a checksum, of a run that was killed or of an earlier version, were removed",
                        self.folder, len(unnamed))  # fmt: skip

    def drop_damaged(self, keys: Iterable[str], rank: int = 0, world_size: int = 1) -> None:
        """Remove this rank's share of the damaged shards that hold any of these items."""
        shards = {entry["shard"]: entry["crc32"] for key in keys if (entry := self.index.get(key))}
        for name, crc32 in sorted(shards.items()):
            if crc32 % world_size != rank:  # another process's share, which does not depend on what is removed already
                continue
            if name not in self._sound and file_crc32(self.folder / name) != crc32:
                lost = sum(entry["shard"] == name for entry in self.index.values())
                log.warning("%s: damaged; its %d items are recomputed", self.folder / name, lost)
                (self.folder / name).unlink(missing_ok=True)
            else:
                self._sound.add(name)

    def __getstate__(self) -> dict[str, object]:
        """State for a loader's worker process: files are reopened there."""
        return {**self.__dict__, "_open": OrderedDict()}

    def __contains__(self, key: str) -> bool:
        return key in self.index

    def read(self, key: str, names: Sequence[str]) -> list[Tensor]:
        """Read an item's tensors, copied out of the file; raises UserError if the shard is damaged."""
        from safetensors import SafetensorError, safe_open

        shard = self.index[key]["shard"]
        try:
            if shard not in self._sound:
                if file_crc32(self.folder / shard) != self.index[key]["crc32"]:
                    raise UserError(f"{self.folder / shard}: damaged (its checksum does not match); {AGAIN}")
                self._sound.add(shard)
            if shard not in self._open:
                if len(self._open) >= OPEN_SHARDS:
                    self._open.popitem(last=False)
                self._open[shard] = safe_open(self.folder / shard, framework="pt")
            self._open.move_to_end(shard)
            return [self._open[shard].get_tensor(f"{key}.{name}").clone() for name in names]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.folder / shard}: damaged ({error}); {AGAIN}") from None

    def write(self, rank: int, items: Sequence[tuple[Item, dict[str, Tensor]]]) -> None:
        """Write a shard of items, each an index entry with its `key`, and tensors by name."""
        from safetensors.torch import save_file

        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        name = f"shard-{rank:03d}-{self._next_number(rank):06d}.safetensors"
        tensors = {
            f"{entry['key']}.{field}": tensor.detach().cpu().contiguous()
            for entry, fields in items
            for field, tensor in fields.items()
        }
        with atomic_path(self.folder / name) as temporary, disk_errors(self.folder / name):
            save_file(tensors, temporary)
            crc32 = file_crc32(temporary)
        index = self.folder / f"index-{rank:03d}.jsonl"
        torn = index.is_file() and not index.read_bytes().endswith(b"\n")
        entries: list[IndexEntry] = [{**entry, "shard": name, "crc32": crc32} for entry, _ in items]
        with disk_errors(index), index.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + "".join(line_with_checksum(entry) for entry in entries))
        self.index |= {entry["key"]: entry for entry in entries}
        self._named.add(name)
        self._sound.add(name)

    def _next_number(self, rank: int) -> int:
        """A number that no shard has had: an index line of a removed shard must not be taken for a new one's."""
        there = {p.name for p in self.folder.glob("shard-*.safetensors")} | self._named
        taken = [int(name[10:16]) for name in there if name.startswith(f"shard-{rank:03d}-")]
        return max(taken, default=-1) + 1


@contextlib.contextmanager
def cache_lock(folder: Path) -> Iterator[None]:
    """One run at a time fills a folder of the cache; its processes start and end together."""
    with distributed_output_lock(folder, wait=True):
        yield
        wait_for_all()


def missing_by_shard(keys: Sequence[str], present: Keys) -> Iterator[list[int]]:
    """Indices of the items to compute for each shard.

    Shards are cut from the whole list, not from what is missing, so that a killed run computes the same batches again
    and ends with the same bits.
    """
    for start in range(0, len(keys), SHARD_ITEMS):
        missing = [i for i in range(start, min(start + SHARD_ITEMS, len(keys))) if keys[i] not in present]
        if missing:
            yield missing
