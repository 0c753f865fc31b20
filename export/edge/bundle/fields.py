"""What bundle.json may say: types and bounds of every field that the runtime reads, checked before anything is opened or allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from .content import Content

MAX_BYTES = 64 << 20  # of a JSON file
MAX_TOKENS = 1 << 20  # ids of a vocabulary; Whisper has 51,866
MAX_WRITTEN = 4096  # tokens of a transcript; Whisper writes 448
MAX_NAMED = 10_000  # entries of any table
LONGEST_PROMPT = 16
LONGEST_NAME = 255
CTC = "ctc"  # the family of models with a CTC head
SHA256 = re.compile(r"[0-9a-f]{64}")
PART = re.compile(r"[^\x00-\x1f\x7f/\\:]+")  # of a path

Check = Callable[[str, object], None]  # raises ValueError that names the field


def check_fields(content: Mapping[str, object]) -> Content:
    """A manifest's content, checked; raises ValueError that names the first wrong field, its value and what is expected."""
    for field in ("name", "family", "precisions", "tokens", "files", "length", "margin_seconds", "window_seconds", "decoding"):  # fmt: skip
        if field not in content:
            raise ValueError(f"field {field!r} is missing")
    for field, check in FIELDS.items():
        if content.get(field) is not None or field not in OPTIONAL:
            check(field, content[field])
    found = cast("Content", content)  # its fields are what they should be
    if (found["family"] == CTC) != ("ctc" in found):
        raise ValueError(f"field 'ctc' is {'missing' if found['family'] == CTC else 'for the family ctc alone'}")
    prompts = found["tokens"]["prompts"]
    if found["family"] == CTC:
        return found
    lengths = {len(prompt) for prompt in prompts.values()}
    if len(lengths) > 1 or (len(prompts) > 1 and min(lengths) < 2):
        raise ValueError("field 'tokens.prompts' has prompts of different lengths, or without a token of the language")
    return found


def text(field: str, value: object) -> None:
    """A line of text."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME or not value.isprintable():
        raise _wrong(field, value, f"one line of 1 to {LONGEST_NAME} printable characters")


def path(field: str, value: object) -> None:
    """A relative path with forward slashes."""
    parts = value.split("/") if isinstance(value, str) else []
    if not isinstance(value, str) or not 0 < len(parts) <= 16 or len(value) > LONGEST_NAME:
        raise _wrong(field, value, f"a relative path of at most {LONGEST_NAME} characters")
    if value.startswith("/") or ".." in parts or re.match("[A-Za-z]:", value):
        raise ValueError(f"field {field!r}: {abbreviated(value)} points outside the bundle")
    if "." in parts or not all(PART.fullmatch(part) for part in parts) or not _is_unicode(value):
        raise _wrong(field, value, "a relative path with forward slashes")


def integer(least: int, most: int) -> Check:
    """A whole number within bounds."""

    def check(field: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _wrong(field, value, f"a whole number from {least} to {most}")

    return check


def number(least: float, most: float) -> Check:
    """A finite number within bounds."""

    def check(field: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise _wrong(field, value, f"a number from {least:g} to {most:g}")

    return check


def choice(*known: object) -> Check:
    """One of some values."""

    def check(field: str, value: object) -> None:
        if not any(type(value) is type(one) and value == one for one in known):
            raise _wrong(field, value, " or ".join(map(repr, known)))

    return check


def mapping(key: Check, entry: Check, least: int = 0, most: int = MAX_NAMED) -> Check:
    """A JSON object whose keys and values are checked alike."""

    def check(field: str, value: object) -> None:
        if not isinstance(value, dict) or not least <= len(value) <= most:
            raise _wrong(field, value, f"an object of {least} to {most} entries")
        for name, one in value.items():
            key(f"{field}: a name", name)
            entry(f"{field}.{name[:LONGEST_NAME]}", one)

    return check


def fields(**entries: Check) -> Check:
    """A JSON object with known fields; those whose name ends in `_` may be missing."""

    def check(field: str, value: object) -> None:
        if not isinstance(value, dict):
            raise _wrong(field, value, "an object")
        for name, one in entries.items():
            plain = name.removesuffix("_")
            if plain in value:
                one(f"{field}.{plain}", value[plain])
            elif plain == name:
                raise ValueError(f"field {field}.{name!r} is missing")

    return check


def array(entry: Check, least: int, most: int) -> Check:
    """A JSON array whose elements are checked alike."""

    def check(field: str, value: object) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise _wrong(field, value, f"an array of {least} to {most} elements")
        for i, one in enumerate(value):
            entry(f"{field}[{i}]", one)

    return check


def anything(field: str, value: object) -> None:
    """An object whose fields the runtime does not read."""
    if not isinstance(value, dict):
        raise _wrong(field, value, "an object")


def _digest(field: str, value: object) -> None:
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise _wrong(field, value, "a SHA-256 of 64 hexadecimal digits")


def _graph(field: str, value: object) -> None:
    path(field, value)
    if not str(value).endswith(".onnx"):  # onnxruntime recognises the format by it
        raise _wrong(field, value, "a path that ends in .onnx")


def _id(field: str, value: object) -> None:
    # ASCII digits only: `int` accepts others, and more of them than fit
    if not (isinstance(value, str) and re.fullmatch("[0-9]{1,7}", value)) or int(value) >= MAX_TOKENS:
        raise _wrong(field, value, f"a token id below {MAX_TOKENS}")


def _word(field: str, value: object) -> None:
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not _is_unicode(value):
        raise _wrong(field, value, f"at most {LONGEST_NAME} characters")


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in value)  # lone surrogates have no UTF-8


def _wrong(field: str, value: object, expected: str) -> ValueError:
    return ValueError(f"field {field!r} is {abbreviated(value)}; expected {expected}")


def abbreviated(value: object) -> str:
    """A value, abbreviated: it may be huge."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'an array'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 64:
        return f"a number of {value.bit_length()} bits"
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def in_one_line(text: str) -> str:
    """The text with unprintable characters escaped: a file name may hold line breaks and terminal control codes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def is_finite(value: str) -> float:
    """For `json.loads(parse_constant=...)`: NaN and infinity are not JSON."""
    raise ValueError(f"{value} is not a JSON number")


_token = integer(0, MAX_TOKENS - 1)
OPTIONAL = {"ctc", "sample_rate", "packed_for", "speech_detector", "alignment", "run", "vocabulary", "int8", "host", "parity",
            "verification", "measurement", "search", "workbench", "exporter", "checkpoint_sha256", "parameters", "licence"}  # fmt: skip
FIELDS: dict[str, Check] = {
    "name": text,
    "family": text,
    "workbench": text,
    "licence": text,
    "exporter": _digest,
    "checkpoint_sha256": _digest,
    "parameters": integer(0, 10**12),
    "length": choice("true", "padded"),
    "margin_seconds": number(0, 30),
    "window_seconds": number(1, 30),
    "sample_rate": choice(16_000),
    "precisions": mapping(text, mapping(text, _graph, 1, 16), 1, 256),
    "packed_for": _word,
    "speech_detector": _graph,
    "tokens": fields(
        prompts=mapping(text, array(_token, 1, LONGEST_PROMPT), 1, 1000),
        end=_token,
        added_=mapping(_id, _word, most=MAX_TOKENS),
    ),
    "decoding": fields(
        tokens_at_least=integer(1, MAX_WRITTEN),
        tokens_per_second=number(0, 1000),
        tokens_per_second_of_=mapping(text, number(0, 1000)),
        most_tokens=integer(1, MAX_WRITTEN),
    ),
    "files": mapping(path, _digest),
    "ctc": fields(
        blank=_token,
        pieces=path,
        lower_=choice(True, False),
        units_=choice("characters", "bytes", "bpe", "sentencepiece"),
        normalizes_=choice(True, False),
        plain_=choice(True, False),
    ),
    "alignment": fields(heads_=array(array(integer(0, 1000), 2, 2), 0, 1000)),
    **dict.fromkeys(("run", "vocabulary", "int8", "host", "parity", "verification", "measurement", "search"), anything),
}


def check_vocabulary(entries: object) -> dict[str, int]:
    """Check what vocab.json holds, token by id; raises ValueError."""
    mapping(_any_text, _token, 1, MAX_TOKENS)("vocabulary", entries)
    return cast("dict[str, int]", entries)


def _any_text(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise _wrong(field, value, "text")


def check_shape(what: str, shape: Sequence[int], expected: Sequence[int | None], most: Sequence[int]) -> None:
    """Compare a tensor's shape with what is expected of each axis, None for any size within its bound; raises ValueError."""
    rank = len(shape) == len(expected)
    fits = rank and all(
        isinstance(n, int) and 0 < n <= top and want in (None, n)
        for n, want, top in zip(shape, expected, most, strict=True)
    )
    if not fits or math.prod(shape) == 0:
        wanted = [f"1 to {top}" if want is None else str(want) for want, top in zip(expected, most, strict=True)]
        raise ValueError(f"{what} has shape {list(shape)[:8]}; expected [{', '.join(wanted)}]")
