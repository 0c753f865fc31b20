"""A reference and what several systems wrote of it, word under word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from workbench.text.normalizers import normalize, spaced

Kind = Literal["", "substitution", "deletion", "insertion"]


@dataclass(frozen=True)
class Column:
    """A word of the reference, or a place between two words, and what each system has there."""

    reference: str  # empty between two words
    written: list[tuple[str, Kind]]  # of each system; an empty text where it has nothing


def align(reference: str, hypotheses: Sequence[str], language: str) -> list[Column]:
    """Columns of an alignment, normalized as for WER; of characters in languages that are written without spaces.

    Args:
        reference: the transcript as it stands.
        hypotheses: what each system wrote.
        language: Whisper's code.
    """
    wanted = _units(reference, language)
    at: list[list[tuple[str, Kind]]] = []  # by system and position in the reference
    before: list[list[str]] = []  # inserted before that position, or at the end
    for hypothesis in hypotheses:
        placed, inserted = _placed(wanted, _units(hypothesis, language))
        at.append(placed)
        before.append(inserted)
    columns: list[Column] = []
    for i in range(len(wanted) + 1):
        if any(inserted[i] for inserted in before):
            columns.append(Column("", [(inserted[i], "insertion" if inserted[i] else "") for inserted in before]))
        if i < len(wanted):
            columns.append(Column(wanted[i], [placed[i] for placed in at]))
    return columns


def _units(text: str, language: str) -> list[str]:
    normalized = normalize(text, language)
    return normalized.split() if spaced(language) else list(normalized.replace(" ", ""))


def _placed(wanted: list[str], said: list[str]) -> tuple[list[tuple[str, Kind]], list[str]]:
    """What stands at each word of the reference, and what is inserted before each and at the end."""
    import jiwer

    # units are given to jiwer as words, characters of unspaced languages too
    found = jiwer.process_words([" ".join(wanted)], [" ".join(said)])
    at: list[tuple[str, Kind]] = [("", "deletion")] * len(wanted)
    before = [""] * (len(wanted) + 1)
    for chunk in found.alignments[0]:
        first, last = chunk.ref_start_idx, chunk.ref_end_idx
        words = said[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "insert":
            before[first] = " ".join(words)
        elif chunk.type in ("equal", "substitute"):
            kind: Kind = "" if chunk.type == "equal" else "substitution"
            at[first:last] = [(word, kind) for word in words]
    return at, before
