"""Differences between two transcripts: normalized texts are compared, and the words as they were written are marked."""

from __future__ import annotations

import functools
import html
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from export.edge import Word
from workbench.evaluation.alignment import Kind, edits, units
from workbench.evaluation.scoring import normalize
from workbench.text.normalizers import spaced


@dataclass(frozen=True)
class Piece:
    """A word of a transcript as it was written, or one that is missing from it."""

    text: str
    kind: Kind | None = None  # None if it agrees with the standard
    expected: str = ""  # of a substitution: what the standard has instead
    gap: str = " "  # what stands before it
    start: float | None = None  # seconds
    end: float | None = None


def differences(standard: str, text: str, language: str = "en", words: Sequence[Word] = ()) -> list[Piece]:
    """Every word of a transcript as it was written, marked where its normalized form differs from the standard's.

    Args:
        standard: the reference, or another system's transcript, as it stands.
        text: the transcript as it stands.
        language: Whisper's code, which chooses the normalizer.
        words: the transcript's words with their times, where they are known.

    Returns:
        Pieces in the order of the text. A word that the normalizer drops (fillers, punctuation) is never marked. Missing words appear as
        the standard writes them.
    """
    pieces = split_words(text, language, words)
    wanted = [piece.text for piece in split_words(standard, language)]
    ours, our_owners = _owned([piece.text for piece in pieces], text, language)
    theirs, their_owners = _owned(wanted, standard, language)
    missing: dict[int, list[int]] = {}  # by the piece before which they belong, units of the standard
    for edit in edits(theirs, ours):
        if edit.said is None and edit.wanted is not None:
            before = our_owners[edit.place][0] if edit.place < len(ours) else len(pieces)
            missing.setdefault(before, []).append(edit.wanted)
        elif edit.kind is not None and edit.said is not None:
            expected = " ".join(wanted[i] for i in their_owners[edit.wanted]) if edit.wanted is not None else ""
            for owner in our_owners[edit.said]:
                if pieces[owner].kind != "substitution":  # of several kinds in one word the first substitution is shown
                    pieces[owner] = replace(pieces[owner], kind=edit.kind, expected=expected)
    out: list[Piece] = []
    between = " " if spaced(language) else ""
    sizes = Counter(i for owners in their_owners for i in owners)
    for i in range(len(pieces) + 1):
        gone = missing.get(i, [])
        out += [Piece(one, "deletion", gap=between) for one in _as_written(gone, theirs, wanted, their_owners, sizes)]
        out += pieces[i : i + 1]
    return out


def split_words(text: str, language: str, words: Sequence[Word] = ()) -> list[Piece]:
    """A text's words as they were written, with their times where `words` tells them."""
    pieces: list[Piece] = []
    at = 0
    for word in words:
        found = text.find(word.text, at)
        if found < 0:  # a character that was cut; the text is what counts
            return split_words(text, language)
        pieces.append(Piece(word.text, gap=text[at:found], start=word.start, end=word.end))
        at = found + len(word.text)
    if words and not text[at:].strip():
        return pieces
    pattern = r"\S+" if spaced(language) else r"\S"
    at = 0
    pieces = []
    for match in re.finditer(pattern, text):
        pieces.append(Piece(match[0], gap=text[at : match.start()]))
        at = match.end()
    return pieces


def _owned(raw: Sequence[str], text: str, language: str) -> tuple[list[str], list[tuple[int, ...]]]:
    """A text's normalized units, and of each the written words that it comes from.

    A normalizer reads several words at once ("twenty one" is 21), so the words normalized one by one are matched with the text normalized
    as a whole; where both differ, all words of that stretch own all its units.
    """
    alone = [(unit, i) for i, word in enumerate(raw) for unit in units(_normalized_word(word, language), language)]
    whole = units(normalize(text, language), language)
    owners: list[tuple[int, ...]] = []
    before = 0  # index among `alone` of the unit before a stretch
    for agrees, stretch in itertools.groupby(edits([u for u, _ in alone], whole), key=lambda edit: edit.kind is None):
        steps = list(stretch)
        here = [edit.wanted for edit in steps if edit.wanted is not None]
        if agrees:
            owners += [(alone[k][1],) for k in here]
        else:
            mine = tuple(sorted({alone[k][1] for k in here}))
            nearest = alone[before][1] if alone else 0
            owners += [mine or (nearest,)] * sum(edit.said is not None for edit in steps)
        before = max([before, *here])
    return whole, owners


@functools.lru_cache(maxsize=1 << 14)
def _normalized_word(word: str, language: str) -> str:
    return normalize(word, language)


def _as_written(
    missing: Sequence[int],
    theirs: Sequence[str],
    wanted: Sequence[str],
    owners: Sequence[tuple[int, ...]],
    sizes: Mapping[int, int],
) -> list[str]:
    """Missing units as the standard writes them; normalized where only a part of a written word is missing.

    Args:
        missing: indices of units of the standard.
        theirs: the standard's units.
        wanted: the standard's words as they were written.
        owners: the written words that each unit comes from.
        sizes: number of units that come from each written word.
    """
    gone = Counter(i for unit in missing for i in owners[unit])
    out: list[str] = []
    shown: set[int] = set()
    for unit in missing:
        for i in owners[unit]:
            if i in shown:
                continue
            if gone[i] == sizes[i]:
                out.append(wanted[i])
                shown.add(i)
            else:
                out.append(theirs[unit])
                break
    return out


@functools.lru_cache(maxsize=256)
def marked_html(
    standard: str, text: str, language: str, words: tuple[Word, ...] = (), against: str = "reference"
) -> str:
    """`differences` as HTML, kept for the next time, because a page is drawn after every run of every system."""
    return as_html(differences(standard, text, language, words), against)


def as_html(pieces: Sequence[Piece], against: str = "reference") -> str:
    """Marked words as HTML.

    Args:
        pieces: of one transcript.
        against: `reference`: kinds of errors have their own colours; any other name (the teacher's): a difference has one neutral colour,
            because neither is known to be right.
    """
    out: list[str] = []
    for number, piece in enumerate(pieces):
        kind = piece.kind
        label = _label(piece, against)
        attributes = f' title="{html.escape(label)}"' if label else ""
        if kind is not None:
            attributes += f' data-kind="{kind if against == "reference" else "differs"}"'
        classes = ["piece", *([kind if against == "reference" else "differs"] if kind else [])]
        if piece.start is not None and piece.end is not None:
            classes.append("word")
            attributes += f' role="button" tabindex="{-1 if out else 0}" data-start="{piece.start:.3f}" data-end="{piece.end:.3f}"'
        tag = "del" if kind == "deletion" else "mark" if kind else "span"
        spoken = f'<span class="unseen"> ({html.escape(label)})</span>' if label else ""
        gap = html.escape(piece.gap) if number else ""
        out.append(f'{gap}<{tag} class="{" ".join(classes)}"{attributes}>{html.escape(piece.text)}{spoken}</{tag}>')
    return "".join(out)


def _label(piece: Piece, against: str) -> str:
    """What a mark means, in words."""
    if piece.kind is None:
        return ""
    if against != "reference":
        said = {"deletion": f"the {against} has this word", "insertion": f"the {against} lacks this word"}
        return said.get(piece.kind, f"the {against} has: {piece.expected}")
    if piece.kind == "substitution":
        return f"substitution for: {piece.expected}"
    return "deletion: this word is missing" if piece.kind == "deletion" else "insertion: not in the reference"
