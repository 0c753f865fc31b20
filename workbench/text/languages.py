"""From a language's name in data (`English`, `en-US`, `eng`) to the code that Whisper uses."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from workbench.core.errors import UserError, did_you_mean

# Whisper's codes that differ from today's standard, and its names for what the standard divides.
_WHISPERS = {"jv": "jw", "nb": "no", "fil": "tl"}
_NO_LANGUAGE = frozenset({"mis", "mul", "und", "zxx"})  # ISO 639-2's codes for several, unknown and none
_NEWER = frozenset({"tok"})  # in ISO 639-3, not yet in the library's table


@functools.lru_cache(maxsize=1 << 12)
def language_code(value: str) -> str:
    """Code of a language by its code or English name.

    Args:
        value: an ISO 639-1, -2 or -3 code, with or without a region or script, or a name that Whisper has for the language.

    Returns:
        Whisper's code where Whisper supports the language, else its shortest ISO 639 code: such clips can be read and scored, and a model
        that does not support the language rejects them itself.

    Raises:
        UserError: `value` is not a language; the message is the value and what was expected, to be put after a place.
    """
    import langcodes

    names, known = _whisper_names(), _whisper_codes()
    name = " ".join(value.strip().lower().replace("_", "-").split())
    if name in names:
        return names[name]
    code = name.split("-")[0]
    if code in known:
        return code
    if code in _NEWER:
        return code
    if len(code) not in (2, 3) or not code.isalpha() or code in _NO_LANGUAGE or not langcodes.tag_is_valid(code):
        expected = "expected an ISO 639 code such as 'en', or a name such as 'english'"
        close = did_you_mean(name, names) if len(name) > 3 and not name.isdigit() else ""
        raise UserError(f"{value!r}, which is not a language{close if 'did you mean' in close else ''}; {expected}")
    short = langcodes.standardize_tag(code)
    # `arb` (Standard Arabic) is `ar` to Whisper; `nan` (Min Nan) is not `zh`, although the standard counts it among Chinese
    wider = langcodes.standardize_tag(code, macro=True).split("-")[0]
    for candidate in (_WHISPERS.get(short, short), "zh" if code == "cmn" else "", wider if wider != "zh" else ""):
        if candidate in known:
            return candidate
    return short


def whisper_knows(code: str) -> bool:
    """Whether some Whisper model supports a language code."""
    return code in _whisper_codes()


def did_you_mean_language(value: str, known: Iterable[str]) -> str:
    """As `did_you_mean` for a code among `known`: a language's English name, or another form of its code, is told its code."""
    codes = set(known)
    try:
        code = language_code(value)
    except UserError:
        code = ""
    if not code:
        return did_you_mean(value, codes)
    return f"; its code is {code!r}" if code in codes else f"; the model knows {', '.join(sorted(codes))}"


def whisper_codes() -> list[str]:
    """Codes of all languages that some Whisper model supports."""
    return sorted(_whisper_codes())


@functools.cache
def _whisper_names() -> Mapping[str, str]:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return dict(TO_LANGUAGE_CODE)


@functools.cache
def _whisper_codes() -> frozenset[str]:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return frozenset(LANGUAGES)
