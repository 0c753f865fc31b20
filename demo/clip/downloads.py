"""A comparison as files: JSON, CSV, and subtitles (SRT) of each system."""

from __future__ import annotations

import csv
import html
import io
import json
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from demo.clip.transcribe import Comparison, Outcome
from export.edge import Segment, Transcript, Word, format_segments
from workbench.audio.decode import Wave, write_wav
from workbench.evaluation.scoring import headline, normalize
from workbench.text.normalizers import normalizer_name, spaced

CUE_SECONDS, CUE_CHARACTERS = 6.0, 80  # longest subtitle
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All that is known of a comparison, as JSON: what the API returns and the page lets a visitor save."""
    unit = headline(comparison.language)
    rows = []
    for outcome in comparison.outcomes.values():
        errors, speedup = comparison.errors(outcome.name), comparison.speedup(outcome.name)
        counted = None
        if errors is not None:
            rate = round(100 * errors.total / max(errors.length, 1), 3)
            counted = {**asdict(errors), unit: rate}
        rows.append(
            {
                "name": outcome.name,
                "role": "teacher" if outcome.name == comparison.teacher else "student",
                "text": outcome.text,
                "normalized": normalize(outcome.text, comparison.language),
                "complete": outcome.complete and not outcome.problem,
                "problem": outcome.problem,
                "words": [asdict(word) for word in outcome.words],
                "latency_ms": round(outcome.latency_ms, 2) if outcome.runs else None,  # median of the runs
                "runs_ms": [round(ms, 2) for ms in outcome.runs_ms],
                "stages_ms": {stage: round(ms, 2) for stage, ms in outcome.stages_ms.items()},
                "speedup": None if speedup is None else round(speedup, 3),
                "errors": counted,
            }
        )
    return {
        "seconds": round(comparison.seconds, 3),
        "language": comparison.language,
        "reference": comparison.reference,
        "normalizer": normalizer_name(comparison.language),
        "systems": rows,
    }


def as_csv(comparison: Comparison) -> str:
    """One row per system; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    fields = ["name", "role", "text", "reference", "language", "seconds", "latency_ms", "speedup", headline(comparison.language),
              "substitutions", "deletions", "insertions", "length", "complete", "problem"]  # fmt: skip
    content = as_json(comparison)
    out = io.StringIO()
    table = csv.DictWriter(out, fields, extrasaction="ignore")
    table.writeheader()
    shared = {key: content[key] for key in ("reference", "language", "seconds")}
    for system in content["systems"]:
        row = {**system, **shared, **(system["errors"] or {})}
        table.writerow({field: _cell(value) for field, value in row.items()})
    return out.getvalue()


def _cell(value: object) -> object:
    """A text that no spreadsheet computes (https://owasp.org/www-community/attacks/CSV_Injection); anything else as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def as_srt(outcome: Outcome, language: str) -> str:
    """Subtitles of one system: cut between words where their times are known, else one for each stretch of speech."""
    cues = list(_cues(outcome.words, language)) if outcome.words else [s for s in outcome.segments if s.transcript.text]
    return format_segments(cues, outcome.name, "srt")


def _cues(words: Sequence[Word], language: str) -> list[Segment]:
    between = " " if spaced(language) else ""
    cues: list[Segment] = []
    held: list[Word] = []
    for word in [*words, None]:
        if held and (
            word is None
            or word.end - held[0].start > CUE_SECONDS
            or len(between.join(w.text for w in [*held, word])) > CUE_CHARACTERS
        ):
            text = between.join(w.text for w in held)
            cues.append(Segment(held[0].start, held[-1].end, Transcript(text, language, (), {}, True)))
            held = []
        if word is not None:
            held.append(word)
    return cues


def write_downloads(comparison: Comparison) -> tuple[str, dict[str, str]]:
    """Write a finished comparison's files where the page may serve them.

    Returns:
        HTML links to JSON and CSV, and of each system to its subtitles.
    """
    folder = served_folder()
    systems = {}
    for number, outcome in enumerate(comparison.outcomes.values()):
        if outcome.text:
            path = folder / f"system-{number}.srt"
            path.write_text(as_srt(outcome, comparison.language), encoding="utf-8")
            systems[outcome.name] = f" · {link(path, 'Subtitles (SRT)')}"
    as_is, table = folder / "comparison.json", folder / "comparison.csv"
    as_is.write_text(json.dumps(as_json(comparison), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    table.write_text(
        as_csv(comparison), encoding="utf-8-sig", newline=""
    )  # with a mark, without which Excel guesses the encoding
    return f'<p class="downloads">Save: {link(as_is, "JSON")} {link(table, "CSV")}</p>', systems


def write_player(wave: Wave) -> str:
    """HTML of a player of a clip as the systems get it (16 kHz, mono)."""
    path = served_folder() / "clip.wav"
    write_wav(path, np.asarray(wave))
    return player(address(path), "What the systems hear: 16 kHz, mono")


def player(source: str, label: str) -> str:
    """HTML of an audio player."""
    return (
        f'<figure class="player"><figcaption>{html.escape(label)}</figcaption>'
        f'<audio controls preload="auto" src="{html.escape(source)}" aria-label="{html.escape(label)}"></audio></figure>'
    )


def address(path: Path) -> str:
    """Relative address of a file in the page's private folder, which Gradio serves to whoever knows its name."""
    return f"gradio_api/file={path}"


def served_folder() -> Path:
    """A new folder whose files the page serves to whoever knows its name, which cannot be guessed."""
    folder = Path(tempfile.gettempdir()) / f"clip-{secrets.token_hex(16)}"
    folder.mkdir(mode=0o700)
    return folder


def link(path: Path, text: str) -> str:
    """HTML that saves a served file."""
    return f'<a href="{html.escape(address(path))}" download="{html.escape(path.name)}">{html.escape(text)}</a>'
