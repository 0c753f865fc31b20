"""Transcribed recordings as plain text, subtitles or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable

from .transcript import Segment
from .words import as_dict

FORMATS = ("text", "srt", "vtt", "json")


def format_segments(segments: Iterable[Segment], name: str, kind: str) -> str:
    """Segments of a recording in one of FORMATS; `text` is one line that begins with the recording's name."""
    rows = list(segments)
    if kind == "text":
        return f"{name}\t" + " ".join(row.transcript.text for row in rows if row.transcript.text)
    if kind == "json":
        return json.dumps({"recording": name, "segments": [_as_dict(row) for row in rows]}, ensure_ascii=False)
    mark = "," if kind == "srt" else "."
    cues = [
        f"{i}\n{_time(row.start, mark)} --> {_time(row.end, mark)}\n{row.transcript.text}\n"
        for i, row in enumerate((row for row in rows if row.transcript.text), 1)
    ]
    return "\n".join(["WEBVTT\n", *cues] if kind == "vtt" else cues)


def _as_dict(segment: Segment) -> dict[str, object]:
    said = segment.transcript
    return {
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": said.text,
        "language": said.language,
        "finished": said.finished,
        "looped": said.looped,
        "logprob": None if said.logprob is None else round(said.logprob, 4),
        "words": [as_dict(word) for word in said.words],
    }


def _time(seconds: float, mark: str) -> str:
    """Hours, minutes, seconds and thousandths, as in subtitles."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{mark}{thousandths:03d}"
