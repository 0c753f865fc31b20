"""The fields of a transcription request, checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from export.edge import BundleError, Hotwords, Recognizer
from export.edge.decoding.hotwords import parse_hotwords
from export.edge.recognizer import AUTO
from export.serving.errors import ApiError, bad_value
from export.serving.options import ServerOptions
from workbench.core.errors import did_you_mean

ResponseFormat = Literal["json", "verbose_json", "text", "srt", "vtt"]
FORMATS: tuple[ResponseFormat, ...] = get_args(ResponseFormat)
STREAMED = ("json", "text")  # formats in which a transcript can be streamed
GRANULARITIES = ("segment", "word")
MAX_HOTWORDS = 5000  # characters in a request
REPEATED = "timestamp_granularities[]"
FIELDS = (
    "file", "model", "language", "prompt", "response_format", "temperature", "stream", "chunking_strategy", REPEATED, "hotwords",
)  # fmt: skip


@dataclass(frozen=True)
class TranscriptionRequest:
    """What is asked for, besides the recording."""

    language: str
    format: ResponseFormat
    segments: bool  # in verbose_json
    words: bool
    stream: bool
    hotwords: Hotwords | None


def check_fields(names: Sequence[str]) -> None:
    """Raise ApiError for a field that the server does not know, or that is there twice."""
    for name, times in Counter(names).items():
        if name not in FIELDS:
            raise ApiError(
                400, f"{name[:100]!r} is not supported{did_you_mean(name, FIELDS)}", "unknown_parameter", name[:100]
            )
        if times > 1 and name != REPEATED:
            raise bad_value(name, f"{name!r} is there {times} times; expected once.")


def check_model(model: str, known: Collection[str]) -> None:
    """Raise ApiError (404) if this is not the model that is served."""
    if model not in known:
        raise ApiError(
            404, f"The model {model[:100]!r} does not exist{did_you_mean(model[:100], known)}", "model_not_found", "model"
        )  # fmt: skip


def checked(
    recognizer: Recognizer, options: ServerOptions, *, language: str, prompt: str, response_format: str, temperature: float,
    stream: bool, chunking_strategy: str, granularities: Sequence[str], hotwords: str, default_hotwords: Hotwords | None,
) -> TranscriptionRequest:  # fmt: skip
    """Check the values of the fields of OpenAI's API that have the same names, and `hotwords`, which it lacks.

    Raises ApiError (400) at the first that is not supported.
    """
    if response_format not in FORMATS:
        raise bad_value(
            "response_format", f"response_format is {response_format[:100]!r}; expected {_any_of(FORMATS)}."
        )
    if temperature != 0:
        raise bad_value(
            "temperature",
            f"temperature is {temperature:g}; this server decodes deterministically: expected 0, or none.",
        )
    if prompt.strip() and not options.ignore_prompt:
        raise bad_value(
            "prompt", "prompt is not supported, because the model was not trained with prompts; leave it out (or start the server with --ignore-prompt)."
        )  # fmt: skip
    if chunking_strategy not in ("", "auto"):
        raise bad_value("chunking_strategy", "chunking_strategy: expected 'auto', or none.")
    if stream and response_format not in STREAMED:
        raise bad_value("stream", f"stream: response_format is {response_format!r}; expected {_any_of(STREAMED)}.")
    language = language.strip().lower() or options.language
    if language not in (AUTO, *recognizer.prompts):
        raise bad_value(
            "language", f"language is {language[:100]!r}; expected {_any_of(sorted(recognizer.prompts))}, or none."
        )
    if wrong := [g for g in granularities if g not in GRANULARITIES]:
        raise bad_value(REPEATED, f"{REPEATED} is {wrong[0][:100]!r}; expected {_any_of(GRANULARITIES)}.")
    if granularities and response_format != "verbose_json":
        raise bad_value(REPEATED, f"{REPEATED}: response_format is {response_format!r}; expected 'verbose_json'.")
    words = "word" in granularities
    if words and not recognizer.times_words:
        raise bad_value(REPEATED, "This model has no alignment heads for word times; leave 'word' out.")
    return TranscriptionRequest(
        language,
        response_format,
        not granularities or "segment" in granularities,
        words,
        stream,
        _hotwords(recognizer, hotwords, options.hotwords_score) or default_hotwords,
    )


def _hotwords(recognizer: Recognizer, text: str, score: float) -> Hotwords | None:
    """Hotwords of a request; None if it has none."""
    words = parse_hotwords(text)
    if not words:
        return None
    if len(text) > MAX_HOTWORDS:
        raise bad_value("hotwords", f"hotwords: {len(text)} characters; expected at most {MAX_HOTWORDS} (a longer list can be given to the server, with --hotwords).")  # fmt: skip
    try:
        return recognizer.new_hotwords(words, score)
    except BundleError as error:
        raise bad_value("hotwords", f"hotwords: {error}.") from None


def _any_of(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}" if len(names) > 1 else names[0]
