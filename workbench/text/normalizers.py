"""Text normalization for scoring: what counts as the same word in each language. Named and versioned in every report.

English has Whisper's own normalizer (spelling, contractions, numbers). Every other language has one that follows Whisper's
basic normalizer (case, punctuation, symbols) and differs where that one changes words: combining marks stay where they
spell, Arabic and Hebrew vowel points go, Turkish has its own case rules, and number words equal digits.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

VERSION = 2  # raise it whenever a text's normalized form changes: measurements are keyed by it

# Languages that text2num turns from words to digits, and those whose digits num2words turns to words. A language in neither keeps digits and number words as they stand, and its normalizer's name then includes no library.
WORDS_TO_DIGITS = frozenset({"da", "de", "es", "fr", "it", "nl", "pt"})
DIGITS_TO_WORDS = frozenset(
    "ar be ca cs cy fa fi he hu id is lt lv no pl ro ru sk sl sr sv th uk vi".split()  # noqa: SIM905
)
# Written without spaces between words, so that a word error rate means little: CER is their headline.
UNSPACED = frozenset({"bo", "ja", "km", "lo", "my", "th", "yue", "zh"})

_ELLIPSIS = re.compile(r"\.{2,}|…")
_BRACKETS = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]*\)")  # sounds and asides, as in Whisper's basic normalizer
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼʻ＇‛´`", "'"))
# A separator between groups of three digits: 1.000, 1,000 and 1 000 with a non-breaking space, but not 3,5.
_THOUSANDS = re.compile(r"(?<=\d)[.,\u00a0\u202f\u2009](?=\d{3}(?!\d))")
# Vowel points and other optional marks of Arabic and Hebrew, and the Arabic stretching stroke.
_OPTIONAL_MARKS = re.compile(
    "[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
)
_DIGITS = re.compile(r"\d+")
# The same letter in two encodings, which look alike in print.
_PERSIAN = str.maketrans({"ي": "ی", "ى": "ی", "ك": "ک"})
_CHILLUS = {"ണ്\u200d": "ൺ", "ന്\u200d": "ൻ", "ര്\u200d": "ർ", "ല്\u200d": "ൽ", "ള്\u200d": "ൾ", "ക്\u200d": "ൿ"}
_LETTERS_WITHOUT_DECOMPOSITION = str.maketrans(
    {"ł": "l", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ß": "ss", "ı": "i", "ħ": "h", "ŧ": "t"}
)
_FOLDED_SCRIPTS = ("LATIN", "GREEK", "CYRILLIC")


def spelling_table() -> Path:
    """Path of Whisper's English spelling table (normalizer.json), which the whisper-normalizer package carries."""
    spec = importlib.util.find_spec("whisper_normalizer")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("whisper-normalizer is not installed; run: pip install whisper-normalizer")
    return Path(spec.submodule_search_locations[0]) / "normalizers" / "english.json"


def normalizer_name(language: str) -> str:
    """Name and version of a language's normalizer, and of the library that reads its numbers, for example `basic-es/2 text2num/3.1.0`."""
    if language == "en":
        return f"whisper-en/{VERSION} transformers/{_version('transformers')}"
    library = "text2num" if language in WORDS_TO_DIGITS else "num2words" if language in DIGITS_TO_WORDS else ""
    return f"basic-{language}/{VERSION}" + (f" {library}/{_version(library)}" if library else "")


@functools.cache
def _version(package: str) -> str:
    return importlib.metadata.version(package)


def normalize(text: str, language: str = "en") -> str:
    """Text as it is compared: lower case, without punctuation, numbers in one form.

    Args:
        text: a transcript.
        language: Whisper's code of the text's language; a language without its own rules uses the basic ones.

    Returns:
        Words separated by single spaces; empty if nothing but punctuation was written.
    """
    # Ellipses go first: Whisper's English normalizer leaves one period of "press..." behind, which then counts as a word.
    return _cached(_ELLIPSIS.sub(" ", text).translate(_APOSTROPHES), language)


@functools.lru_cache(maxsize=1 << 16)
def _cached(text: str, language: str) -> str:
    return " ".join(_english()(text).split()) if language == "en" else _basic(text, language)


@functools.cache
def _english() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normalizer: Callable[[str], str] = EnglishTextNormalizer(json.loads(spelling_table().read_text("utf-8")))
    return normalizer


def _basic(text: str, language: str) -> str:
    text = _BRACKETS.sub("", _lower(_THOUSANDS.sub("", text), language))
    text = _plain(_letters(unicodedata.normalize("NFKC", text), language))
    if language in WORDS_TO_DIGITS:
        from text_to_num import alpha2digit

        # Below zero, so that a number by itself is converted, too: "marque uno" is "marque 1".
        text = _plain(alpha2digit(text, language, threshold=-1.0))
    elif language in DIGITS_TO_WORDS:
        text = _plain(_DIGITS.sub(lambda found: f" {_spelled(found[0], language)} ", text))
    return text


def _lower(text: str, language: str) -> str:
    if language in ("az", "tr"):
        text = text.replace("I\u0307", "i").replace("İ", "i").replace("I", "ı")
    return text.lower()


def _letters(text: str, language: str) -> str:
    """One encoding for each letter, ASCII digits, and no marks that a writer may leave out."""
    text = _OPTIONAL_MARKS.sub("", text)
    if language in ("fa", "ur", "ps"):
        text = text.translate(_PERSIAN).replace("\u200c", " ")
    if language == "ml":
        for sequence, letter in _CHILLUS.items():
            text = text.replace(sequence, letter)
    if language == "ru":
        text = text.replace("ё", "е")  # Russian orthography allows either
    return "".join(str(unicodedata.decimal(c)) if unicodedata.category(c) == "Nd" else c for c in text)


def _plain(text: str) -> str:
    """Punctuation and symbols as spaces; combining marks stay with their letter, format characters (joiners, direction marks) go."""
    kept: list[str] = []
    for character in unicodedata.normalize("NFKC", text):
        kind = unicodedata.category(character)
        alone = not kept or kept[-1] == " "
        if kind[0] in "PSZ":
            kept.append(" ")
        elif kind != "Cf" and not (kind[0] == "M" and alone):  # an emoji's variation selector is not a word
            kept.append(character)
    return " ".join("".join(kept).split())


@functools.lru_cache(maxsize=4096)
def _spelled(digits: str, language: str) -> str:
    from num2words import num2words

    if (len(digits) > 1 and digits[0] == "0") or len(digits) > 12:
        return " ".join(str(num2words(int(digit), lang=language)) for digit in digits)  # a code is read digit by digit
    return str(num2words(int(digits), lang=language)).lower()


@functools.lru_cache(maxsize=1 << 16)
def fold(text: str) -> str:
    """A normalized text without the diacritics of Latin, Greek and Cyrillic letters; marks of other scripts spell, and stay."""
    out = []
    folded = False  # whether the letter before belongs to a script whose marks are dropped
    for character in unicodedata.normalize("NFD", text.translate(_LETTERS_WITHOUT_DECOMPOSITION)):
        if unicodedata.category(character) == "Mn" and folded:
            continue
        if unicodedata.category(character)[0] == "L":
            folded = unicodedata.name(character, "").startswith(_FOLDED_SCRIPTS)
        out.append(character)
    return unicodedata.normalize("NFC", "".join(out))


def spaced(language: str) -> bool:
    """Whether a language writes spaces between words, so that its word error rate means something."""
    return language not in UNSPACED
