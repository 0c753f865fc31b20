"""A user's own data: a JSONL or CSV manifest beside its audio, or a NeMo manifest."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.audio import probe_seconds
from workbench.corpus.split import split_key, split_of
from workbench.corpus.utterance import SPLITS, Utterance
from workbench.errors import UserError, nearest

# Our name of a field -> the names other tools give it (NeMo, Common Voice, LibriSpeech exports, audiofolder).
FIELDS = {
    "audio": ("audio", "audio_filepath", "file_name", "path", "file"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "duration": ("duration", "seconds"),
    "language": ("language", "lang", "locale"),
    "split": ("split",),
    "id": ("id", "utterance_id"),
}
MANIFEST_NAMES = ("manifest.jsonl", "manifest.csv", "manifest.json", "metadata.jsonl", "metadata.csv")


def find_manifest(path: Path) -> Path:
    """Return the manifest file for a path given by the user: the file itself, or the one in a folder."""
    if path.is_dir():
        for name in MANIFEST_NAMES:
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path}: holds no manifest; expected one of {', '.join(MANIFEST_NAMES)} in it")
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; expected a .jsonl or .csv file, or a folder that holds one")
    return path


def read_manifest(path: Path, transcribed: bool = True) -> list[Utterance]:
    """Read a manifest (fields `audio,text[,duration,language,split,id]`) into utterances.

    Audio paths are relative to the manifest. Where no split is given, the transcript decides it (split.py). Lines that
    NeMo wrote (`audio_filepath`) are read likewise. With `transcribed` false a line needs no text, and none decides a split.

    Raises:
        UserError: naming file, line, field and value for the first line that cannot be used.
    """
    manifest = find_manifest(path)
    utterances: list[Utterance] = []
    seen: dict[str, int] = {}
    for number, row in _rows(manifest):
        where = f"{manifest}:{number}"
        audio = _audio_path(manifest, _field(row, "audio", where), where)
        text = (_field(row, "text", where) if transcribed else str(_optional(row, "text") or "")).strip()
        if not text and transcribed:
            raise UserError(f"{where}: field 'text' is empty; expected the transcript, or drop the line")
        name = str(row.get("id") or row.get("utterance_id") or _relative(audio, manifest.parent))
        if name in seen:
            raise UserError(f"{where}: id {name!r} already stands on line {seen[name]}; ids must be unique")
        seen[name] = number
        language = str(_optional(row, "language") or "en").lower().replace("_", "-").split("-")[0]
        split = str(_optional(row, "split") or "") or (split_of(split_key(text, language)) if text else "train")
        if split not in SPLITS:
            raise UserError(f"{where}: field 'split' is {split!r}{nearest(split, SPLITS)}")
        utterances.append(Utterance(name, audio, text, _seconds(row, audio, where), language, split))
    if not utterances:
        raise UserError(f"{manifest}: holds no utterance")
    return utterances


def _rows(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        content = manifest.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        at = manifest.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(
            f"{manifest}:{at}: not UTF-8 (byte 0x{error.object[error.start]:02x}); "
            f"convert it, for example: iconv -f latin1 -t utf-8 {manifest.name}"
        ) from None
    if manifest.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(content))
        for record in reader:
            yield reader.line_num, record
        return
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{manifest}:{number}: not a JSON object ({error}); expected one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{manifest}:{number}: expected a JSON object a line, found {type(row).__name__}")
        yield number, row


def _optional(row: dict[str, Any], field: str) -> Any:
    return next((row[alias] for alias in FIELDS[field] if row.get(alias) not in (None, "")), None)


def _field(row: dict[str, Any], field: str, where: str) -> str:
    for alias in FIELDS[field]:
        if row.get(alias) is not None:
            return str(row[alias])
    raise UserError(
        f"{where}: no field {field!r} (nor {', '.join(FIELDS[field][1:])}); it has: {', '.join(map(str, row))}"
    )


def _audio_path(manifest: Path, value: str, where: str) -> Path:
    path = Path(value).expanduser()
    path = path if path.is_absolute() else manifest.parent / path
    if not path.is_file():
        raise UserError(f"{where}: field 'audio' names {value!r}, but {path} does not exist")
    return path


def _relative(audio: Path, folder: Path) -> str:
    return audio.relative_to(folder).as_posix() if audio.is_relative_to(folder) else audio.as_posix()


def _seconds(row: dict[str, Any], audio: Path, where: str) -> float:
    given = _optional(row, "duration")
    if given is None:
        return probe_seconds(audio)
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{where}: field 'duration' is {given!r}; expected seconds, a number above 0")
    return seconds
