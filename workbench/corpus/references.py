"""References of the built-in prompts: their orthography restored, and which of them cannot be scored.

Debian's transcripts of es, fr, it and ru lack accents, hold mojibake and misspellings. One file per language (corrections/LANGUAGE.tsv)
lists what was corrected; errors were found by reading, never by a recogniser. Only orthography changes: accents, ñ,
letters lost to mojibake, misspelt words, spaces within or between words. No word is added, removed or replaced by another.
Texts known or likely not to match the audio are marked instead, by patterns that look at nothing but the text.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

from workbench.core.errors import UserError
from workbench.core.files import read_json
from workbench.core.hashing import cached_sha256

CORRECTED = ("es", "fr", "it", "ru")
VERSION = 3  # of the built corpora; raise it whenever a text, a mark or a split of the same packages changes
VERSION_FILE = "corpus.json"
_FOLDER = Path(__file__).parent / "corrections"
_HEADER = ("id", "was", "now", "why")

_ANY = CORRECTED
_SPANISH_NUMBER = r"(?:\d|(?:cero|uno|una|dos|tres|cuatro|cinco|seis|siete|ocho|nueve)\b)"
# (languages, pattern of the corrected text, why such a text is not scored)
NOT_SCORED: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    (
        ("es",),
        re.compile(rf"\b(?:marque|presione)\s+{_SPANISH_NUMBER}", re.IGNORECASE),
        'the text leaves out a word before numbers ("marque 1" where "marque número 1" is said)',
    ),
    (_ANY, re.compile(r"\b[a-z]+(?:-[a-z0-9]+)+:"), "the text holds the name of a prompt, and often a second prompt's text"),
    # square brackets count only if there is a letter or a digit in them: "at [@]" means the same as "at"
    (
        _ANY,
        re.compile(r"\([^)]*\)|\[[^]]*[^\W_][^]]*\]"),
        "the text has a part in brackets, which may be a note or may be said",
    ),
    (_ANY, re.compile(r"[*#]"), "the text has a symbol where its name is said"),
    (_ANY, re.compile(r"[^\W\d_]\s*/\s*[^\W\d_]"), "the text has a slash between words, where a word is probably said"),
    (("it",), re.compile(r"\bsuono\b.*\bbeep\b"), "the text describes a sound and no speech"),
)  # fmt: skip


class Correction(NamedTuple):
    """A row of a corrections file."""

    was: str  # the text in Debian's package, exactly
    now: str
    why: str


@functools.cache
def corrections(language: str) -> dict[str, Correction]:
    """Corrections of a language by prompt id; empty for a language without a corrections file."""
    if language not in CORRECTED:
        return {}
    path = corrections_file(language)
    header, *lines = path.read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t") for line in lines if line]
    if tuple(header.split("\t")) != _HEADER or any(len(row) != len(_HEADER) for row in rows):
        raise UserError(f"{path}: expected tab-separated columns {', '.join(_HEADER)}")
    found = {name: Correction(*rest) for name, *rest in rows}
    if len(found) != len(rows):
        raise UserError(f"{path}: an id appears on two lines; ids must be unique")
    return found


def corrections_file(language: str) -> Path:
    """The corrections file of one of the languages in CORRECTED."""
    return _FOLDER / f"{language}.tsv"


def corrected(name: str, text: str, language: str) -> str:
    """A prompt's reference with its orthography restored; a prompt without a correction keeps its text.

    Args:
        name: the prompt's id.
        text: its text in Debian's package.
        language: code of its language.

    Raises:
        UserError: the package's text is not the one that the correction was made for.
    """
    row = corrections(language).get(name)
    if row is None:
        return text
    if row.was != text:
        raise UserError(
            f"{corrections_file(language)}: id {name!r} was corrected from {row.was!r}, but the package says {text!r}: "
            "Debian's package has changed; read the new text and change that line"
        )
    return row.now


def why_not_scored(text: str, language: str) -> str:
    """Why a clip with this reference cannot be scored; empty if it can."""
    return next((why for codes, pattern, why in NOT_SCORED if language in codes and pattern.search(text)), "")


def build_version(language: str) -> dict[str, object]:
    """What a corpus built by this version carries in corpus.json; differs whenever its texts, marks or splits may differ."""
    version: dict[str, object] = {"corpus": f"prompts-{language}", "version": VERSION}
    return version | (
        {"corrections_sha256": cached_sha256(corrections_file(language))} if language in CORRECTED else {}
    )


def built_language(folder: Path) -> str | None:
    """Language of a corpus that `workbench corpus prompts` built in a folder; None for any other folder."""
    if (folder / VERSION_FILE).is_file():
        name = str(read_json(folder / VERSION_FILE, "a built corpus's version").get("corpus", ""))
        return name.removeprefix("prompts-") if name.startswith("prompts-") else None
    left_out, manifest = folder / "left_out.tsv", folder / "manifest.jsonl"
    if not left_out.is_file() or not manifest.is_file() or not (folder / "LICENSE").is_file():
        return None
    # as built before there was a version: the list of what was left out has this header
    with left_out.open(encoding="utf-8") as file:
        if file.readline() != "id\treason\ttranscript\n":
            return None
    with manifest.open(encoding="utf-8") as file:
        found = re.search(r'"language": "([a-z]{2})"', file.readline())
    return found[1] if found else None


def is_current(folder: Path, language: str) -> bool:
    """Whether a folder holds a language's corpus, or a corrupted one made from it, as this version builds it."""
    path = folder / VERSION_FILE
    return path.is_file() and read_json(path, "a built corpus's version") == build_version(language)


def check_current(folder: Path, name: str) -> None:
    """Refuse a corpus of one of the corrected languages that was built with other references.

    Args:
        folder: the corpus's folder.
        name: what it is called, such as prompts-es or prompts-es-corrupt40.

    Raises:
        UserError: it is out of date.
    """
    named = re.fullmatch(r"prompts-([a-z]{2})(?:-corrupt(\d+)(-words)?)?", name)
    language = named[1] if named else built_language(folder)
    if language not in CORRECTED or is_current(folder, language):
        return
    more = f" --corrupt {int(named[2]) / 100:g}" if named and named[2] else ""
    more += " --corruption words" if named and named[3] else ""
    raise UserError(
        f"{folder}: was built with other references than this version's (accents and misspellings were corrected since); "
        f"rebuild it: workbench corpus prompts --language {language}{more}"
    )
