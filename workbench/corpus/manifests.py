"""A user's own data: a manifest of utterances beside its audio, as JSON lines, a JSON array, CSV or TSV."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from workbench.audio.decode import probe_seconds
from workbench.core.errors import UserError, did_you_mean
from workbench.core.files import expand_user
from workbench.corpus.rows import read_rows
from workbench.corpus.split import split_key, split_of
from workbench.corpus.utterance import META, SPLITS, AudioSegment, Utterance
from workbench.text.languages import language_code

log = logging.getLogger("workbench")
# Our name of a field -> the names other tools give it (NeMo, Common Voice, LibriSpeech exports, audiofolder).
FIELDS = {
    "audio": ("audio", "audio_filepath", "file_name", "path", "file"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "duration": ("duration", "seconds"),
    "offset": ("offset", "start", "start_time"),
    "end": ("end", "end_time"),
    "language": ("language", "lang", "locale"),
    "split": ("split",),
    "id": ("id", "utterance_id"),
    "scored": ("scored",),
    "speaker": ("speaker", "speaker_id", "client_id"),
}
MANIFEST_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
MANIFEST_NAMES = (
    "manifest.jsonl", "manifest.csv", "manifest.tsv", "manifest.json",
    "metadata.jsonl", "metadata.csv", "metadata.tsv", "validated.tsv",
)  # fmt: skip
# What other tools write for a value that is missing. "null" is not among them: it is German for zero.
MISSING = frozenset({"nan", "NaN", "None", "<NA>"})
ROUNDING_SECONDS = 0.1  # by which a segment may end after its recording: durations are rounded, and packets have delays


def find_manifest(path: Path) -> Path:
    """Return the manifest file for a path given by the user: the file itself, or the one in a folder."""
    if path.is_dir():
        for name in MANIFEST_NAMES:
            if (path / name).is_file():
                return path / name
        raise UserError(
            f"{path}: holds no manifest; expected one of {', '.join(MANIFEST_NAMES)} in it "
            "(of recordings without transcripts, `workbench label` makes one)"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; expected a .jsonl, .json, .csv or .tsv file, or a folder that holds one")  # fmt: skip
    return path


def read_manifest(path: Path, transcribed: bool = True) -> list[Utterance]:
    """Read a manifest (fields `audio,text[,offset,duration,language,split,id,scored,speaker]`) into utterances.

    Audio paths are relative to the manifest, or to `clips` beside it as in Common Voice. `offset` and `duration` (or `end`) cut
    a segment out of a recording. Where no split is given, the transcript decides it (split.py). Rows without text or audio
    (null, NaN) are left out with one warning. With `transcribed` false a row needs no text, and none decides a split.

    Raises:
        UserError: naming file, line, field and value for the first row that cannot be used.
    """
    manifest = find_manifest(path)
    utterances: list[Utterance] = []
    seen: dict[str, str] = {}
    lengths: dict[Path, float] = {}  # of recordings that segments are cut from
    missing = LeftOut(str(manifest))
    for number, row in read_rows(manifest):
        where = f"{manifest}:{number}"
        named, said = _field(row, "audio", where), _field(row, "text", where) if transcribed else _optional(row, "text")
        if is_missing(named) or (transcribed and is_missing(said)):
            missing.add("audio" if is_missing(named) else "text", f"line {number}")
            continue
        if not isinstance(said, (str, int, type(None))) or isinstance(said, bool):
            raise UserError(f"{where}: field 'text' is {said!r}; expected a string")
        text = "" if is_missing(said) else str(said).strip()
        if not text and transcribed:
            raise UserError(f"{where}: field 'text' is empty; expected the transcript, or drop the line")
        utterance = _utterance(row, manifest, _audio_path(manifest, str(named), where), text, where, lengths)
        if utterance.id in seen:
            raise UserError(f"{where}: id {utterance.id!r} is already on line {seen[utterance.id]}; ids must be unique")
        seen[utterance.id] = str(number)
        utterances.append(utterance)
    if not utterances:
        raise UserError(f"{manifest}: holds no utterance" + (f" ({missing})" if missing.count else ""))
    missing.report()
    return utterances


class LeftOut:
    """Rows that are left out because a value is missing: how many, and the first."""

    def __init__(self, source: str) -> None:
        self.source, self.count, self.first = source, 0, ""

    def add(self, field: str, row: str) -> None:
        """Count a row whose `field` is missing."""
        self.count += 1
        self.first = self.first or f"{row}, field {field!r}"

    def __str__(self) -> str:
        rows = "1 row has" if self.count == 1 else f"{self.count} rows have"
        return f"{rows} no text or no audio (null, NaN), the first: {self.first}"

    def report(self) -> None:
        """Warn once of the rows counted."""
        if self.count:
            log.warning("%s: left out: %s", self.source, self)


def is_missing(value: object) -> bool:
    """Whether a field holds no value: null, NaN, or what other tools write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and value.strip() in MISSING)  # fmt: skip


def _utterance(
    row: Mapping[str, object], manifest: Path, audio: Path, text: str, where: str, lengths: dict[Path, float]
) -> Utterance:
    source, seconds = _cut(row, audio, where, lengths)
    name = _relative(audio, manifest.parent)
    if isinstance(source, AudioSegment):
        name += f"@{round(source.start, 3)}-{round(source.start + source.seconds, 3)}"
    language = _language(row, where)
    split = str(_optional(row, "split") or "") or (split_of(split_key(text, language)) if text else "train")
    if split not in (*SPLITS, META):
        raise UserError(f"{where}: field 'split' is {split!r}{did_you_mean(split, (*SPLITS, META))}")
    given, speaker = _optional(row, "id"), _optional(row, "speaker")
    return Utterance(
        id=name if given is None else str(given),
        audio=source,
        text=text,
        seconds=seconds,
        language=language,
        split=split,
        scored=_scored(row, where),
        speaker="" if speaker is None else str(speaker),
        where=where,
    )


def _optional(row: Mapping[str, object], field: str) -> object:
    """The first of a field's names that has a value, or None."""
    return next((row[a] for a in FIELDS[field] if row.get(a) != "" and not is_missing(row.get(a))), None)


def _field(row: Mapping[str, object], field: str, where: str) -> object:
    """As `_optional`, but a field without a value is returned as it is, and a missing field is an error."""
    if (value := _optional(row, field)) is not None:
        return value
    for alias in FIELDS[field]:
        if alias in row:
            return row[alias]
    raise UserError(
        f"{where}: no field {field!r} (nor {', '.join(FIELDS[field][1:])}); it has: {', '.join(map(str, row))}"
    )


def _audio_path(manifest: Path, value: str, where: str) -> Path:
    if not value:
        raise UserError(f"{where}: field 'audio' is empty; expected the path of a recording, or drop the line")
    given = expand_user(value)
    path = given if given.is_absolute() else manifest.parent / given
    wrong = f"{where}: field 'audio' names {value!r:.200}, but {path!s:.300}"
    try:
        found = next((p for p in (path, manifest.parent / "clips" / given) if p.is_file()), None)
    except OSError as error:  # a name that is too long, a folder that must not be read
        raise UserError(f"{wrong} cannot be looked up: {error.strerror}") from error
    if found is None:
        raise UserError(f"{wrong} does not exist")
    return found


def _relative(audio: Path, folder: Path) -> str:
    return audio.relative_to(folder).as_posix() if audio.is_relative_to(folder) else audio.as_posix()


def _cut(
    row: Mapping[str, object], audio: Path, where: str, lengths: dict[Path, float]
) -> tuple[Path | AudioSegment, float]:
    """The part of its recording that a row uses, and its length in seconds."""
    duration = _seconds(row, "duration", where, lambda value: value > 0, "seconds, a number above 0")
    start = _seconds(row, "offset", where, lambda value: value >= 0, "seconds from the recording's start, 0 or more")
    end = _seconds(
        row, "end", where, lambda value: value > (start or 0.0), "seconds, a number above the segment's start"
    )
    if start is None and end is None:
        return audio, probe_seconds(audio) if duration is None else duration
    start = start or 0.0
    if audio not in lengths:
        lengths[audio] = probe_seconds(audio)
    whole = lengths[audio]
    if end is not None and duration is not None and abs(end - start - duration) > ROUNDING_SECONDS:
        raise UserError(
            f"{where}: field 'duration' is {duration:g}, but the segment from {start:g} to {end:g} s lasts {end - start:g} s"
        )
    seconds = duration if duration is not None else (whole if end is None else end) - start
    last = "offset" if start >= whole else "duration" if end is None or duration is not None else "end"
    if start >= whole or start + seconds > whole + ROUNDING_SECONDS:
        given = next(row[alias] for alias in FIELDS[last] if alias in row)
        raise UserError(
            f"{where}: field {last!r} is {given}, so that the segment of {start:g} to {start + seconds:g} s goes beyond "
            f"the recording's end; {audio.name} lasts {whole:.2f} s"
        )
    if not start and abs(seconds - whole) <= ROUNDING_SECONDS:
        return audio, seconds
    return AudioSegment(audio, start, min(seconds, whole - start)), min(seconds, whole - start)


def _seconds(
    row: Mapping[str, object], field: str, where: str, fits: Callable[[float], bool], expected: str
) -> float | None:
    given = _optional(row, field)
    if given is None:
        return None
    try:
        seconds = (
            math.nan if isinstance(given, bool) else float(given) if isinstance(given, (str, int, float)) else math.nan
        )
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not (math.isfinite(seconds) and fits(seconds)):
        raise UserError(f"{where}: field {field!r} is {given!r}; expected {expected}")
    return seconds


def _language(row: Mapping[str, object], where: str) -> str:
    """English where there is no language field; a field that exists must name one."""
    given = [row[alias] for alias in FIELDS["language"] if alias in row]
    value = next((v for v in given if v != "" and v == v and v is not None), None)  # NaN is unequal to itself
    if given and value is None:
        raise UserError(f"{where}: field 'language' is {given[0]!r}; expected an ISO 639 code such as 'en', or drop the field")  # fmt: skip
    try:
        return "en" if value is None else language_code(str(value))
    except UserError as error:
        raise UserError(f"{where}: field 'language' is {error}") from None


def _scored(row: Mapping[str, object], where: str) -> bool:
    given = _optional(row, "scored")
    if given is None:
        return True
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.strip().lower() in ("true", "false"):  # CSV has no booleans
        return given.strip().lower() == "true"
    raise UserError(f"{where}: field 'scored' is {given!r}; expected true or false")
