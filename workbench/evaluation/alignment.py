"""The edits between two texts, and a reference with what several systems wrote of it, word under word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from workbench.text.normalizers import normalize, spaced

Kind = Literal["substitution", "insertion", "deletion"]
KINDS: tuple[Kind, ...] = ("substitution", "deletion", "insertion")


@dataclass(frozen=True)
class Column:
    """A word of the reference, or a place between two words, and what each system has there."""

    reference: str  # empty between two words
    written: list[tuple[str, Kind | None]]  # of each system, None where it agrees; an empty text where it has nothing


@dataclass(frozen=True)
class Edit:
    """One step of the cheapest way from a normalized standard to a normalized transcript."""

    kind: Kind | None
    wanted: int | None  # index among the standard's units; None for an insertion
    said: int | None  # index among the transcript's; None for a deletion
    place: int  # index among the transcript's units before which a deletion belongs


def units(text: str, language: str) -> list[str]:
    """What a normalized text is compared by: words, or characters where a language does not separate words."""
    return text.split() if spaced(language) else [c for c in text if not c.isspace()]


def edits(wanted: Sequence[str], said: Sequence[str]) -> list[Edit]:
    """The edits that WER (or CER) counts, in order, agreements among them."""
    import jiwer

    found: list[Edit] = []
    # private-use characters stand for the units: jiwer splits at spaces, and a unit may be any text
    codes: dict[str, str] = {}
    as_text = [" ".join(codes.setdefault(unit, chr(0xF0000 + len(codes))) for unit in side) for side in (wanted, said)]
    for chunk in jiwer.process_words([as_text[0]], [as_text[1]]).alignments[0]:
        length = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        for i in range(length):
            ref, hyp = chunk.ref_start_idx + i, chunk.hyp_start_idx + i
            if chunk.type == "delete":
                found.append(Edit("deletion", ref, None, chunk.hyp_start_idx))
            elif chunk.type == "insert":
                found.append(Edit("insertion", None, hyp, hyp))
            else:
                found.append(Edit("substitution" if chunk.type == "substitute" else None, ref, hyp, hyp))
    return found


def align(reference: str, hypotheses: Sequence[str], language: str) -> list[Column]:
    """Columns of an alignment, normalized as for WER; of characters in languages that are written without spaces.

    Args:
        reference: the transcript as it stands.
        hypotheses: what each system wrote.
        language: Whisper's code.
    """
    wanted = _units(reference, language)
    at: list[list[tuple[str, Kind | None]]] = []  # by system and position in the reference
    before: list[list[str]] = []  # inserted before that position, or at the end
    for hypothesis in hypotheses:
        placed, inserted = _placed(wanted, _units(hypothesis, language))
        at.append(placed)
        before.append(inserted)
    columns: list[Column] = []
    for i in range(len(wanted) + 1):
        if any(inserted[i] for inserted in before):
            columns.append(Column("", [(inserted[i], "insertion" if inserted[i] else None) for inserted in before]))
        if i < len(wanted):
            columns.append(Column(wanted[i], [placed[i] for placed in at]))
    return columns


def _units(text: str, language: str) -> list[str]:
    return units(normalize(text, language), language)


def _placed(wanted: list[str], said: list[str]) -> tuple[list[tuple[str, Kind | None]], list[str]]:
    """What stands at each word of the reference, and what is inserted before each and at the end."""
    at: list[tuple[str, Kind | None]] = [("", "deletion")] * len(wanted)
    before: list[list[str]] = [[] for _ in range(len(wanted) + 1)]
    place = 0  # of the next word of the reference
    for edit in edits(wanted, said):
        if edit.wanted is None and edit.said is not None:
            before[place].append(said[edit.said])
        elif edit.wanted is not None:
            place = edit.wanted + 1
            if edit.said is not None:
                at[edit.wanted] = (said[edit.said], edit.kind)
    return at, [" ".join(words) for words in before]
