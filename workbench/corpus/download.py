"""A dataset of the hub as a folder on this machine: its recordings as they are, and a manifest.

For what needs files (`workbench label`, `workbench corpus derive`), for training without a network, and for more clips than fit into memory.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from workbench.config.named_corpora import HubDataset, hub_dataset, is_dataset
from workbench.core.disk import disk_errors
from workbench.core.errors import UserError
from workbench.core.files import write_json, write_jsonl
from workbench.core.locks import output_lock
from workbench.core.ownership import IsOwnFile, OutputKind, check_replaceable, replacing
from workbench.core.progress import Progress
from workbench.corpus.hub import dataset_clips
from workbench.corpus.opening import open_split
from workbench.corpus.utterance import SPLITS, Utterance

log = logging.getLogger("workbench")
RECORD_FILE = "downloaded.json"
_SUFFIXES = {b"fLaC": ".flac", b"RIFF": ".wav", b"OggS": ".ogg", b"ID3": ".mp3"}  # by how a file begins


def _own_files(folder: Path) -> IsOwnFile | None:
    if not (folder / RECORD_FILE).is_file():
        return None
    return lambda name: name in ("manifest.jsonl", RECORD_FILE) or name.startswith("clips/")


DOWNLOADED = OutputKind("downloaded corpus", _own_files)


def download(source: str, output: Path, splits: tuple[str, ...] = (), limit: int | None = None) -> Path:
    """Write a dataset's clips and a manifest into a folder, which then is a corpus; returns the folder.

    Args:
        source: a public corpus's name (`librispeech:100`), or `hf:ID[:CONFIG]`.
        output: the folder, replaced if it holds a downloaded corpus.
        splits: train, validation and test, or some of them; by default all that a named corpus has.
        limit: at most this many clips of each split.

    Raises:
        UserError: no such corpus or split, or something else lies at the output.
    """
    if not is_dataset(source):
        raise UserError(f"corpus {source!r}: is none of the hub's; `workbench corpus names` lists them")
    dataset = hub_dataset(source)
    wanted = splits or tuple(split for split in SPLITS if dataset.splits is None or split in dataset.splits)
    check_replaceable(output, DOWNLOADED)
    wanted = _there(dataset, wanted, required=bool(splits) or dataset.splits is not None)
    with output_lock(output), replacing(output, DOWNLOADED) as folder, disk_errors(output):
        rows = [row for split in wanted for row in _written(source, split, limit, folder)]
        times = Counter(row["id"] for row in rows)
        for row in rows:  # a split may number its clips by itself
            row["id"] = row["id"] if times[row["id"]] == 1 else f"{row['split']}:{row['id']}"
        write_jsonl(folder / "manifest.jsonl", rows)
        write_json(folder / RECORD_FILE, {"schema": 1, "corpus": source, "dataset": dataset.id, "splits": wanted, "clips": limit})  # fmt: skip
    return output


def _there(dataset: HubDataset, splits: tuple[str, ...], *, required: bool) -> tuple[str, ...]:
    """The splits that can be opened, tried before anything is written; raises UserError if none can, or one that is required."""
    there: list[str] = []
    for split in splits:
        try:
            open_split(dataset, split)
        except UserError as error:
            if required or (split == splits[-1] and not there):
                raise
            log.warning("%s; it is left out", error)
        else:
            there.append(split)
    return tuple(there)


def _written(source: str, split: str, limit: int | None, folder: Path) -> Iterator[dict[str, object]]:
    """Writes a split's recordings one by one, and gives their rows of the manifest."""
    (folder / "clips" / split).mkdir(parents=True)
    with Progress(f"{source} {split}", limit) as bar:
        for number, clip in enumerate(dataset_clips(source, split, limit)):
            place = f"clips/{split}/{number:07d}{_suffix(clip)}"
            assert isinstance(clip.audio, bytes)  # noqa: S101  a dataset's
            (folder / place).write_bytes(clip.audio)
            row: dict[str, object] = {"id": clip.id, "audio": place, "text": clip.text, "language": clip.language}
            yield row | {"split": split} | ({"speaker": clip.speaker} if clip.speaker else {})
            bar.advance()


def _suffix(clip: Utterance) -> str:
    assert isinstance(clip.audio, bytes)  # noqa: S101
    return next((suffix for start, suffix in _SUFFIXES.items() if clip.audio.startswith(start)), ".audio")
