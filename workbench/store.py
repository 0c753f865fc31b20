"""Tensors on disk by key: safetensors shards with an index beside them, written as they come.

A shard is whole or absent, and a line of index-RANK.jsonl is appended only after its shard is whole, so a kill costs the
shard being filled. Each process of a distributed run writes shards of its own.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from workbench.errors import UserError
from workbench.files import atomic_path, json_lines

SHARD_ITEMS = 32
OPEN_SHARDS = 4  # pages read of an open shard count as this process's memory; opening one again takes a millisecond


class Keys(Protocol):
    """What knows which items are there already."""

    def __contains__(self, key: str, /) -> bool: ...


class Store:
    """A folder of shards, read an item at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, dict[str, Any]] = {}
        self._open: OrderedDict[str, Any] = OrderedDict()
        self.reload()

    def reload(self) -> None:
        """Read the index again, to see what other processes have written."""
        for path in sorted(self.folder.glob("index-*.jsonl")):
            for line in json_lines(path):
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line that a kill cut short; its items are computed again
                if entry["key"] not in self.index and (self.folder / entry["shard"]).is_file():
                    self.index[entry["key"]] = entry

    def __getstate__(self) -> dict[str, Any]:
        """State for a loader's worker process: files are opened anew there."""
        return {**self.__dict__, "_open": OrderedDict()}

    def __contains__(self, key: str) -> bool:
        return key in self.index

    def read(self, key: str, names: Sequence[str]) -> list[Tensor]:
        """Read an item's tensors, copied out of the file; raises UserError if the shard is damaged."""
        from safetensors import SafetensorError, safe_open

        shard = self.index[key]["shard"]
        try:
            if shard not in self._open:
                if len(self._open) >= OPEN_SHARDS:
                    self._open.popitem(last=False)
                self._open[shard] = safe_open(self.folder / shard, framework="pt")
            self._open.move_to_end(shard)
            return [self._open[shard].get_tensor(f"{key}.{name}").clone() for name in names]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.folder / shard}: damaged ({error}); delete {self.folder} and run again") from None

    def write(self, rank: int, items: Sequence[tuple[dict[str, Any], dict[str, Tensor]]]) -> None:
        """Write a shard of items, each an index entry with its `key`, and tensors by name."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"shard-{rank:03d}-{self._next_number(rank):06d}.safetensors"
        tensors = {
            f"{entry['key']}.{field}": tensor.detach().cpu().contiguous()
            for entry, fields in items
            for field, tensor in fields.items()
        }
        with atomic_path(self.folder / name) as temporary:
            save_file(tensors, temporary)
        index = self.folder / f"index-{rank:03d}.jsonl"
        torn = index.is_file() and not index.read_bytes().endswith(b"\n")
        entries = [{**entry, "shard": name} for entry, _ in items]
        with index.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + "".join(json.dumps(entry) + "\n" for entry in entries))
        self.index |= {entry["key"]: entry for entry in entries}

    def _next_number(self, rank: int) -> int:
        taken = [int(p.stem.rsplit("-", 1)[1]) for p in self.folder.glob(f"shard-{rank:03d}-*.safetensors")]
        return max(taken, default=-1) + 1


def shards_of(keys: Sequence[str], present: Keys) -> Iterator[list[int]]:
    """Numbers of the items to compute for each shard.

    Shards are cut from the whole list, not from what is missing, so that a killed run computes the same batches again
    and ends with the same bits.
    """
    for start in range(0, len(keys), SHARD_ITEMS):
        missing = [i for i in range(start, min(start + SHARD_ITEMS, len(keys))) if keys[i] not in present]
        if missing:
            yield missing
