"""Any Hugging Face dataset with audio and text, streamed, so that only the clips used are fetched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from workbench.audio.decode import LONGEST_SECONDS, SHORTEST_SECONDS, probe_seconds
from workbench.core.errors import UserError, first_line
from workbench.core.files import expand_user
from workbench.core.hashing import cache_key
from workbench.corpus.manifests import FIELDS, LeftOut, is_missing
from workbench.corpus.utterance import Utterance
from workbench.text.languages import language_code, whisper_knows

if TYPE_CHECKING:
    from datasets import IterableDataset

log = logging.getLogger("workbench")
MAX_CLIP_BYTES = 100_000_000  # 30 s of 8 channels at 96 kHz and 32 bits
ARCHIVES = ("zip", "tar", "gzip", "bz2", "lz4", "xz", "zstd")  # as datasets names what a clip may be packed in
TEXT_COLUMNS = (*FIELDS["text"], "normalized_text", "raw_transcription")
LANGUAGE_COLUMNS = ("locale", "language", "lang", "lang_id")


class EncodedAudio(TypedDict):
    """A row's audio, as datasets gives it undecoded."""

    bytes: bytes | None  # the encoded clip
    path: str | None  # where the clip is, if its bytes are not in the row


def read_dataset(spec: str, split: str, limit: int | None = None) -> list[Utterance]:
    """Stream one split of a dataset named `ID` or `ID:CONFIG` (a hub id or a local dataset folder) into utterances.

    The encoded audio of the clips read is held in memory; `limit` bounds how many.

    Raises:
        UserError: the dataset cannot be opened, or has no audio or no transcript column, or no row with both; or a row's language is not a language.
    """
    found = list(islice(_utterances(*_open(spec, split), split, f"hf:{spec}, split {split!r}"), limit))
    if not found:
        raise UserError(f"corpus hf:{spec}: its split {split!r} holds no row with audio and text")
    return found


class Stream:
    """A dataset's training split as windows of utterances, read once, each process its share.

    The order of the dataset's files is shuffled with the seed; within a window the steps are drawn at random, so a
    window is the shuffle buffer. Clips that cannot be used are skipped and counted.
    """

    def __init__(self, spec: str, seed: int, rank: int, ranks: int, window_seconds: float) -> None:
        from datasets.distributed import split_dataset_by_node

        self.window_seconds, self.source = window_seconds, f"hf:{spec}, split 'train'"
        dataset, *columns = _open(spec, "train")
        self.audio_column, self.text_column, self.config = columns
        # a buffer of one: only the files' order is shuffled, so the position in the stream is its whole state
        shuffled = dataset.shuffle(seed=seed, buffer_size=1)
        self.dataset = split_dataset_by_node(shuffled, rank=rank, world_size=ranks) if ranks > 1 else shuffled
        self.skipped = 0

    def windows(self, first: int = 0) -> Iterator[list[Utterance]]:
        """Windows from number `first` on, each of about `window_seconds`; ends with the stream."""
        window: list[Utterance] = []
        seconds, number = 0.0, 0
        for utterance in _utterances(
            self.dataset, self.audio_column, self.text_column, self.config, "train", self.source
        ):
            if not SHORTEST_SECONDS <= utterance.seconds <= LONGEST_SECONDS:
                self.skipped += 1
                continue
            # what comes before the first window wanted is counted and dropped
            if number >= first:
                window.append(replace(utterance, id=content_id(utterance)))
            seconds += utterance.seconds
            if seconds >= self.window_seconds:
                if number >= first:
                    yield window
                window, seconds, number = [], 0.0, number + 1
        if window:
            yield window


def content_id(utterance: Utterance) -> str:
    """Id of a clip by its audio and text, which stays the same when the dataset is reshuffled for the next pass, or divided differently.

    Learnt weights and teacher's losses belong to ids, so a row's number in one order will not do, nor a dataset's own
    `id` column, which need not be unique. Equal clips share an id.
    """
    return cache_key(utterance.identity())


def _open(spec: str, split: str) -> tuple[IterableDataset, str, str, str]:
    """The dataset, its audio column, its text column and its configuration."""
    from datasets import Audio, load_dataset

    name, _, config = spec.partition(":")
    with _reading(f"corpus hf:{spec}: split {split!r}"):
        dataset = load_dataset(name, config or None, split=split, streaming=True)
    columns: Mapping[str, object] = dataset.features or {}
    audio_column = next((c for c, kind in columns.items() if isinstance(kind, Audio)), None)
    text_column = next((c for c in TEXT_COLUMNS if c in columns), None)
    if audio_column is None or text_column is None:
        missing = "audio" if audio_column is None else f"transcript (one of {', '.join(TEXT_COLUMNS)})"
        raise UserError(f"corpus hf:{spec}: has no {missing} column; its columns are {', '.join(columns)}")
    with _reading(f"corpus hf:{spec}: split {split!r}"):
        return _undecoded(dataset, audio_column), audio_column, text_column, config


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn what is wrong with a dataset's files, settings or network into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  # datasets passes on what pyarrow, fsspec and the hub's client raise
        raise UserError(f"{what} cannot be read ({first_line(error, 300)})") from None


def _utterances(
    dataset: IterableDataset, audio_column: str, text_column: str, config: str, split: str, source: str
) -> Iterator[Utterance]:
    code_of = _languages(dataset.features or {}, config, source)
    missing = LeftOut(source)
    rows = iter(dataset)
    try:
        for number in count():
            with _reading(f"{source}: row {number}"):
                row = next(rows, None)
                if row is None:
                    return
                audio, text = _encoded(row[audio_column], source), row[text_column]
            if audio is None or is_missing(text) or not str(text).strip():
                missing.add(audio_column if audio is None else text_column, f"row {number}")
                continue
            where = f"{source}, row {number}"
            if not isinstance(text, (str, int)) or isinstance(text, bool):
                raise UserError(f"{where}: column {text_column!r} is {str(text)[:60]!r}; expected a string")
            try:
                seconds = probe_seconds(audio)
            except UserError as error:
                raise UserError(f"{where}: column {audio_column!r}: {error}") from None
            code = code_of(row, where)
            yield Utterance(_row_id(row, number), audio, str(text).strip(), seconds, code, split, where=where)
    finally:  # also where no more rows are asked for
        missing.report()


def _languages(features: Mapping[str, object], config: str, source: str) -> Callable[[Mapping[str, object], str], str]:
    """How a row's language is found: by the dataset's column, else by its configuration, else it is English, with a warning."""
    from datasets import ClassLabel

    columns = [name for name in LANGUAGE_COLUMNS if name in features]
    if not columns:
        code = _config_language(config)
        if code is None:
            log.warning("%s: names no language, neither in a column (%s) nor by its configuration; taken as English",
                        source, ", ".join(LANGUAGE_COLUMNS))  # fmt: skip
        return lambda _row, _where: code or "en"

    def code_of(row: Mapping[str, object], where: str) -> str:
        wrong = []
        for column in columns:
            value, labels = row[column], features[column]
            if isinstance(labels, ClassLabel) and isinstance(value, int) and 0 <= value < len(labels.names):
                value = labels.int2str(value)
            try:
                return language_code(str(value))
            except UserError as error:
                wrong.append(f"{where}: column {column!r} is {error}")
        raise UserError(wrong[0])

    return code_of


def _config_language(config: str) -> str | None:
    """Language that a configuration is named after (`es`, `en_us`, `cmn_hans_cn`); None for `clean`, `all`, `sdm`, ..."""
    try:
        code = language_code(config)
    except UserError:
        return None
    # a code that Whisper does not support counts only if it has a region: `raw` and `all` are languages in ISO 639-3, too
    return code if whisper_knows(code) or "_" in config or "-" in config else None


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


def _encoded(clip: EncodedAudio | str | None, source: str) -> bytes | None:
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
        folder = expand_user(source.removeprefix("hf:").split(", split ")[0].partition(":")[0])
        *archives, place = path.split("::")  # what it is packed in comes last
        here = folder.is_dir() and Path(place).resolve().is_relative_to(folder.resolve())
        packed = all(part.partition("://")[0] in ARCHIVES for part in archives)
        if not packed or not (here or place.startswith("hf://")):
            raise UserError(f"{source}: a row names the file {path!r}, which is not one of the dataset's")
        with fsspec.open(path, "rb") as file:
            data = bytes(file.read(MAX_CLIP_BYTES + 1))
    if len(data) > MAX_CLIP_BYTES:
        raise UserError(
            f"{source}: a clip has more than {MAX_CLIP_BYTES:,} bytes; expected clips of {LONGEST_SECONDS:.0f} s"
        )
    return data


def _row_id(row: Mapping[str, object], number: int) -> str:
    return str(row["id"]) if row.get("id") not in (None, "") else f"{number:08d}"
