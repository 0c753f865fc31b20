"""Opening one split of a dataset of the Hugging Face hub, or of a local one in its format: rows with their audio undecoded."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from workbench.audio.decode import LONGEST_SECONDS
from workbench.config.named_corpora import HubDataset
from workbench.core.errors import UserError, first_line
from workbench.core.files import expand_user
from workbench.corpus.manifests import FIELDS

if TYPE_CHECKING:
    from datasets import IterableDataset

log = logging.getLogger("workbench")
MAX_CLIP_BYTES = 100_000_000  # 30 s of 8 channels at 96 kHz and 32 bits
ARCHIVES = ("zip", "tar", "gzip", "bz2", "lz4", "xz", "zstd")  # as datasets names what a clip may be packed in
TEXT_COLUMNS = (*FIELDS["text"], "normalized_text", "raw_transcription")
COPIES_VARIABLE = "WORKBENCH_DATASETS"  # a folder of datasets that were copied from the hub, each as OWNER/NAME


class EncodedAudio(TypedDict):
    """A row's audio, as datasets gives it undecoded."""

    bytes: bytes | None  # the encoded clip
    path: str | None  # where the clip is, if its bytes are not in the row


@dataclass(frozen=True)
class OpenedSplit:
    """One split of a dataset."""

    rows: IterableDataset
    audio: str  # columns
    text: str
    speaker: str | None
    dataset: HubDataset
    split: str  # ours
    folder: Path | None  # where it lies, if it is on this machine

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return f"{self.dataset.source}, split {self.split!r}"


def open_split(dataset: HubDataset, split: str) -> OpenedSplit:
    """A split's rows, which columns hold what, and where they lie."""
    from datasets import Audio, concatenate_datasets, load_dataset

    names = (split,) if dataset.splits is None else dataset.splits.get(split, ())
    if not names:
        raise UserError(f"corpus {dataset.source}: has no split {split!r}; it has {', '.join(dataset.splits or ())}")
    folder = _local_folder(dataset.id)
    revision = dataset.revision if folder is None and dataset.revision else None
    with reading(f"corpus {dataset.source}: split {split!r}", "" if folder else dataset.id):
        place = str(folder or dataset.id)
        parts = [
            load_dataset(
                place, dataset.config or None, dataset.folder or None, split=name, streaming=True, revision=revision
            )
            for name in names
        ]
        rows = concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    columns: Mapping[str, object] = rows.features or {}
    audio_column = next((c for c, kind in columns.items() if isinstance(kind, Audio)), None)
    text_column = next((c for c in (dataset.text, *TEXT_COLUMNS) if c in columns), None)
    speaker = next((c for c in FIELDS["speaker"] if c in columns), None)
    if audio_column is None or text_column is None:
        missing = "audio" if audio_column is None else f"transcript (one of {', '.join(TEXT_COLUMNS)})"
        raise UserError(f"corpus {dataset.source}: has no {missing} column; its columns are {', '.join(columns)}")
    with reading(f"corpus {dataset.source}: split {split!r}", "" if folder else dataset.id):
        return OpenedSplit(_undecoded(rows, audio_column), audio_column, text_column, speaker, dataset, split, folder)


def _local_folder(name: str) -> Path | None:
    """Folder of a dataset that is on this machine: the one that is named, or a copy of the hub's in the folder that the environment names."""
    if (named := expand_user(name)).is_dir():
        return named
    copies = os.environ.get(COPIES_VARIABLE)
    copy = expand_user(copies) / name if copies else None
    if copy is None or not copy.is_dir():
        return None
    log.info("%s: read from %s", name, copy)
    return copy


@contextmanager
def reading(what: str, hub_id: str = "") -> Iterator[None]:
    """Turn what is wrong with a dataset's files, settings or network into a UserError.

    Args:
        what: what is read, to begin the message with.
        hub_id: id of the dataset if it is read from the hub.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  # datasets passes on what pyarrow, fsspec and the hub's client raise
        raise UserError(f"{what} cannot be read ({first_line(error, 300)}){_remedy(error, hub_id)}") from None


def _remedy(error: Exception, hub_id: str) -> str:
    """What to do about an error of the hub; nothing where that is not known."""
    said = f"{type(error).__name__} {error}".lower()
    if not hub_id or "/" not in hub_id:
        return ""
    if "gated" in said or "401" in said or "403" in said or "cannot be accessed" in said:
        page = f"https://huggingface.co/datasets/{hub_id}"
        return f"; if it is gated, accept its terms at {page} and log in with `hf auth login`"
    if "offline" in said or "connect" in said or "reach" in said or "resolve" in said:
        return f"; without a network, copy the dataset to FOLDER/{hub_id} and set {COPIES_VARIABLE}=FOLDER"
    return ""


def _undecoded(dataset: IterableDataset, column: str) -> IterableDataset:
    """The dataset with its audio as encoded bytes or a path, which our own decoder reads like every other source.

    datasets 4 requires torchcodec even where nothing is decoded, as soon as rows are made by Python (audio folders)
    rather than read from Parquet; those rows are paths.
    """
    from datasets import Audio, Value

    undecoded = dataset.cast_column(column, Audio(decode=False))
    try:
        next(iter(undecoded), None)
    except ImportError:
        return dataset.cast_column(column, Value("string"))
    return undecoded


def encoded_audio(clip: EncodedAudio | str | None, opened: OpenedSplit) -> bytes | None:
    """A clip's encoded audio; None for a row without.

    Raises:
        UserError: it is too large, or a dataset of the hub names a file elsewhere: rows must not read this machine's files.
    """
    import fsspec

    if isinstance(clip, dict) and (encoded := clip.get("bytes")):
        data = bytes(encoded)
    else:
        path = clip.get("path") if isinstance(clip, dict) else clip
        if not path:
            return None
        folder = opened.folder
        *archives, place = path.split("::")  # what it is packed in comes last
        here = folder is not None and "://" not in place and Path(place).resolve().is_relative_to(folder.resolve())
        packed = all(part.partition("://")[0] in ARCHIVES for part in archives)
        if not packed or not (here or place.startswith("hf://")):
            raise UserError(f"{opened.name}: a row names the file {path!r}, which is not one of the dataset's")
        with fsspec.open(path, "rb") as file:
            data = bytes(file.read(MAX_CLIP_BYTES + 1))
    if len(data) > MAX_CLIP_BYTES:
        raise UserError(
            f"{opened.name}: a clip has more than {MAX_CLIP_BYTES:,} bytes; expected clips of {LONGEST_SECONDS:.0f} s"
        )
    return data
