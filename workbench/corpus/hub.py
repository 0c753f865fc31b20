"""Any Hugging Face dataset with audio and text, streamed, so that only the clips used are fetched."""

from __future__ import annotations

import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count, islice

from workbench.audio.decode import LONGEST_SECONDS, SAMPLE_RATE, SHORTEST_SECONDS, decode, probe_seconds, write_wav
from workbench.config.named_corpora import HubDataset, hub_dataset
from workbench.core.errors import UserError
from workbench.core.hashing import cache_key
from workbench.core.progress import Progress
from workbench.corpus.manifests import LeftOut, is_missing
from workbench.corpus.opening import OpenedSplit, encoded_audio, open_split, reading
from workbench.corpus.utterance import Utterance
from workbench.text.languages import language_code, whisper_knows

log = logging.getLogger("workbench")
LANGUAGE_COLUMNS = ("locale", "language", "lang", "lang_id")
NOT_SPEECH = frozenset({"ignore_time_segment_in_scoring", "<unk>"})  # TED-LIUM's for what is not to be scored


def read_dataset(source: str, split: str, limit: int | None = None) -> list[Utterance]:
    """Stream one split of a dataset (`hf:ID`, `hf:ID:CONFIG` or a public corpus's name) into utterances.

    The encoded audio of the clips read is held in memory; `limit` bounds how many. Clips that are too short or too long for Whisper's window
    are left out with a warning, except those of the leaderboard's sets, which are cut at 30 s. An id that occurs again gets a number.

    Raises:
        UserError: the dataset cannot be opened, or has no audio or no transcript column, or no row with both; or a row's language is not a language.
    """
    found = []
    with Progress(
        f"reading {source} {split}", None, shown=os.environ.get("RANK", "0") == "0"
    ) as bar:  # one of several processes
        for clip in dataset_clips(source, split, limit):
            found.append(clip)
            bar.advance()
    if not found:
        raise UserError(f"corpus {source}: its split {split!r} holds no row with audio and text")
    return found


def dataset_clips(source: str, split: str, limit: int | None = None) -> Iterator[Utterance]:
    """The clips of `read_dataset` one after the other, without holding them."""
    opened = open_split(hub_dataset(source), split)
    unusable = Counter[str]()
    yield from islice(_usable(opened, unusable), limit)
    for why, number in unusable.items():
        log.warning("%s: left out: %d clips %s", opened.name, number, why)


def _usable(opened: OpenedSplit, unusable: Counter[str]) -> Iterator[Utterance]:
    seen: set[str] = set()
    for number, utterance in enumerate(_utterances(opened)):
        if utterance.seconds > LONGEST_SECONDS and not opened.dataset.cut:
            unusable[f"of more than {LONGEST_SECONDS:.0f} s"] += 1
            continue
        if utterance.seconds < SHORTEST_SECONDS:
            unusable[f"of less than {SHORTEST_SECONDS:g} s"] += 1
            continue
        if utterance.seconds > LONGEST_SECONDS:
            utterance = _cut(utterance)
        if utterance.id in seen:  # FLEURS numbers sentences, which several people read
            utterance = replace(utterance, id=f"{utterance.id}#{number}")
        seen.add(utterance.id)
        yield utterance


def _cut(utterance: Utterance) -> Utterance:
    """The first 30 s of a streamed clip, with its whole transcript."""
    assert isinstance(utterance.audio, bytes)  # noqa: S101  a dataset's
    file = io.BytesIO()
    write_wav(file, decode(utterance.audio, utterance.name)[: round(LONGEST_SECONDS * SAMPLE_RATE)])
    return replace(utterance, audio=file.getvalue(), seconds=LONGEST_SECONDS)


class Stream:
    """A dataset's training split as windows of utterances, read once, each process its share.

    The order of the dataset's files is shuffled with the seed; within a window the steps are drawn at random, so a
    window is the shuffle buffer. Clips that cannot be used are skipped and counted.
    """

    def __init__(self, source: str, seed: int, rank: int, ranks: int, window_seconds: float) -> None:
        from datasets.distributed import split_dataset_by_node

        self.window_seconds = window_seconds
        opened = open_split(hub_dataset(source), "train")
        # a buffer of one: only the files' order is shuffled, so the position in the stream is its whole state
        shuffled = opened.rows.shuffle(seed=seed, buffer_size=1)
        mine = split_dataset_by_node(shuffled, rank=rank, world_size=ranks) if ranks > 1 else shuffled
        self.opened = replace(opened, rows=mine)
        self.skipped = 0

    def windows(self, first: int = 0) -> Iterator[list[Utterance]]:
        """Windows from number `first` on, each of about `window_seconds`; ends with the stream."""
        window: list[Utterance] = []
        seconds, number = 0.0, 0
        for utterance in _utterances(self.opened):
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


def _utterances(opened: OpenedSplit) -> Iterator[Utterance]:
    source, audio_column, text_column = opened.name, opened.audio, opened.text
    code_of = _languages(opened.rows.features or {}, opened.dataset, source)
    missing = LeftOut(source)
    rows = iter(opened.rows)
    try:
        for number in count():
            with reading(f"{source}: row {number}"):
                row = next(rows, None)
                if row is None:
                    return
                audio, text = encoded_audio(row[audio_column], opened), row[text_column]
            if isinstance(text, str) and text.strip() in NOT_SPEECH:
                continue
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
            speaker = row.get(opened.speaker) if opened.speaker else None
            yield Utterance(
                _row_id(row, number),
                audio,
                str(text).strip(),
                seconds,
                code_of(row, where),
                opened.split,
                speaker="" if is_missing(speaker) else str(speaker),
                where=where,
            )
    finally:  # also where no more rows are asked for
        missing.report()


def _languages(
    features: Mapping[str, object], dataset: HubDataset, source: str
) -> Callable[[Mapping[str, object], str], str]:
    """How a row's language is found: a named corpus's is known, else by the dataset's column, else by its configuration, else it is English, with a warning."""
    from datasets import ClassLabel

    if dataset.language:
        known = language_code(dataset.language)
        return lambda _row, _where: known
    columns = [name for name in LANGUAGE_COLUMNS if name in features]
    if not columns:
        code = _config_language(dataset.config)
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


def _row_id(row: Mapping[str, object], number: int) -> str:
    return str(row["id"]) if row.get("id") not in (None, "") else f"{number:08d}"
