"""Segments of a recording as OpenAI's API returns them: JSON, text, subtitles, server-sent events."""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

from starlette.responses import JSONResponse, PlainTextResponse, Response

from export.edge import Segment, format_segments
from export.serving.request import TranscriptionRequest

MEDIA_TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}


def answer(segments: Sequence[Segment], request: TranscriptionRequest, seconds: float) -> Response:
    """The answer to a request that is not streamed; `seconds` is the recording's length."""
    if request.format == "json":
        return JSONResponse({"text": text_of(segments), "usage": _usage(seconds)})
    if request.format == "verbose_json":
        return JSONResponse(_verbose(segments, request, seconds))
    content = text_of(segments) + "\n" if request.format == "text" else format_segments(segments, "", request.format)
    return PlainTextResponse(content, media_type=MEDIA_TYPES[request.format])


def text_of(segments: Sequence[Segment]) -> str:
    """The whole transcript."""
    return " ".join(s.transcript.text for s in segments)


def delta_event(segment: Segment, first: bool) -> str:
    """The text of one more segment, as a server-sent event; deltas joined are the whole text."""
    return event({"type": "transcript.text.delta", "delta": ("" if first else " ") + segment.transcript.text})


def done_event(segments: Sequence[Segment], seconds: float) -> str:
    """The whole text at the end of a stream."""
    return event({"type": "transcript.text.done", "text": text_of(segments), "usage": _usage(seconds)})


def event(content: Mapping[str, object]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _usage(seconds: float) -> dict[str, object]:
    return {"type": "duration", "seconds": math.ceil(seconds)}


def _verbose(segments: Sequence[Segment], request: TranscriptionRequest, seconds: float) -> dict[str, object]:
    languages = Counter(s.transcript.language for s in segments)
    body: dict[str, object] = {
        "task": "transcribe",
        "language": languages.most_common(1)[0][0] if languages else request.language,
        "duration": round(seconds, 3),
        "text": text_of(segments),
        "usage": _usage(seconds),
    }
    if request.segments:
        body["segments"] = [_segment(i, s) for i, s in enumerate(segments)]
    if request.words:
        words = [word for s in segments for word in s.transcript.words]
        body["words"] = [{"word": w.text, "start": w.start, "end": w.end, "probability": w.probability} for w in words]
    return body


def _segment(number: int, segment: Segment) -> dict[str, object]:
    said = segment.transcript
    raw = said.text.encode("utf-8", "replace")
    return {
        "id": number,
        "seek": round(100 * segment.start),  # frames of 10 ms, as in Whisper
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": said.text,
        "tokens": list(said.tokens),
        "temperature": 0.0,
        "avg_logprob": said.logprob,  # None unless word times or a limit are asked for, whose pass over the transcript computes it
        "compression_ratio": round(len(raw) / max(1, len(zlib.compress(raw))), 3),
        "no_speech_prob": None,
    }
