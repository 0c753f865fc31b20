"""Hotwords: names and terms that a transcript is likely to hold. The decoder's logits are raised for tokens that spell them.

Words are matched by their bytes, whatever tokens they are divided into, so that the model's own tokenizer is not needed. A prefix
that turns out to begin another word gains nothing in the end: greedy decoding takes it back, a beam loses what it gained
(docs/decisions/0025-hotwords.md).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..bundle.manifest import BundleError
from ..bundle.tokens import Detokenizer

DEFAULT_SCORE = 2.0  # chosen on validation clips; docs/hotwords.md has the figures
MAX_WORDS = 5000
MAX_BYTES = 100  # of a word in UTF-8
MAX_SCORE = 20.0
OPENING = (b'"', b"(", b"[", b"-", b"/")  # punctuation that a word may follow without a space
ANYWHERE, AT_START = 0, 1  # nodes that words begin at: after any token; at the start of a text and after punctuation
# first letters of scripts without spaces: Thai, Lao, Burmese, Khmer, kana, Chinese characters
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0x20000, 0x2FFFF),
)


class Place(NamedTuple):
    """How far a text has come in a hotword."""

    node: int  # of the tree; ANYWHERE outside hotwords
    at_start: bool  # whether a word may begin here without a space


class Moves(NamedTuple):
    """Tokens that spell some more of a hotword."""

    tokens: npt.NDArray[np.intp]
    gains: npt.NDArray[np.float64]  # what each adds to the text's log-probability


START = Place(ANYWHERE, True)


class Hotwords:
    """Words or phrases in a form that decoding uses; made by `Recognizer.hotwords`.

    Every token on the shortest way to spell a hotword gains `score`, so a word in four tokens gains four times as much as one in a single token.

    Args:
        words: as they shall be written; one in lower case counts with a capital, too.
        detokenize: the bundle's vocabulary.
        score: in nats.

    Raises:
        BundleError: a word is empty, too long or cannot be written with the vocabulary, there are too many, or the score is out of range.
    """

    def __init__(self, words: Sequence[str], detokenize: Detokenizer, score: float = DEFAULT_SCORE) -> None:
        if not 0 < score <= MAX_SCORE:
            raise BundleError(f"the score of hotwords is {score:g}; expected above 0, at most {MAX_SCORE:g}")
        if not 0 < len(words) <= MAX_WORDS:
            raise BundleError(f"there are {len(words)} hotwords; expected 1 to {MAX_WORDS}")
        self.children: list[dict[int, int]] = [{}, {}]  # of each node, by the next byte
        self.ends: list[bool] = [False, False]  # whether a hotword ends at a node
        forms = [self._add(" ".join(unicodedata.normalize("NFC", w).split()), i) for i, w in enumerate(words, 1)]
        self.bytes_of, self.tokens = detokenize.bytes_of, detokenize.ids
        self.longest = max(map(len, self.tokens), default=0)
        self.targets = [self._spelled_from(node) for node in range(len(self.children))]  # by node and token
        self.gained, self.kept = self._gains(score)  # by node
        lacking = [w for w, ends in zip(words, forms, strict=True) if all(np.isinf(self.gained[end]) for end in ends)]
        if lacking:
            raise BundleError(
                f"the bundle's vocabulary lacks tokens for {', '.join(map(repr, lacking[:5]))}; take them out of the "
                "hotwords, or export the bundle with a larger vocabulary"
            )
        self._moves: dict[Place, tuple[Moves, Moves]] = {}

    def moves(self, place: Place) -> tuple[Moves, Moves]:
        """Tokens that continue the hotword at a place, and tokens that begin one there."""
        if place not in self._moves:
            onward = self.targets[place.node] if place.node > AT_START else {}
            begin = {**self.targets[ANYWHERE], **(self.targets[AT_START] if place.at_start else {})}
            self._moves[place] = (
                _moves({token: self.gained[to] - self.gained[place.node] for token, to in onward.items()}),
                _moves({token: self.gained[to] for token, to in begin.items() if token not in onward}),
            )
        return self._moves[place]

    def after(self, place: Place, token: int) -> Place:
        """The place after a token."""
        spelled = self.bytes_of(token)
        at_start = spelled[-1:] in OPENING if spelled else place.at_start
        for node in (place.node, ANYWHERE, *([AT_START] if place.at_start else [])):
            if token in self.targets[node]:
                return Place(self.targets[node][token], at_start)
        return Place(ANYWHERE, at_start)

    def continues(self, place: Place, token: int) -> bool:
        """Whether a token spells some more of the hotword at a place."""
        return place.node > AT_START and token in self.targets[place.node]

    def unfinished(self, place: Place) -> float:
        """What the part of a hotword that has been spelled up to a place has gained, if the rest does not follow."""
        return self.gained[place.node] - self.kept[place.node]

    def _add(self, word: str, number: int) -> list[int]:
        """Add a word to the tree; returns the nodes that it ends at."""
        size = len(word.encode())
        if not 0 < size <= MAX_BYTES:
            raise BundleError(f"hotword {number} ({word[:40]!r}) has {size} bytes; expected 1 to {MAX_BYTES}")
        forms = {word, word[0].upper() + word[1:]} if word.islower() else {word}
        unspaced = any(low <= ord(word[0]) <= high for low, high in UNSPACED)
        return [
            end
            for form in forms
            for end in (self._insert(ANYWHERE, form if unspaced else f" {form}"), self._insert(AT_START, form))
        ]

    def _insert(self, node: int, form: str) -> int:
        for byte in form.encode():
            if byte not in self.children[node]:
                self.children[node][byte] = len(self.children)
                self.children.append({})
                self.ends.append(False)
            node = self.children[node][byte]
        self.ends[node] = True
        return node

    def _spelled_from(self, node: int) -> dict[int, int]:
        """The node that each token leads to from a node, of the tokens that spell some more of a hotword."""
        found: dict[int, int] = {}
        walks = [(node, b"")]
        while walks:
            here, spelled = walks.pop()
            if spelled in self.tokens:
                found[self.tokens[spelled]] = here
            if len(spelled) < self.longest:
                walks += [(child, spelled + bytes([byte])) for byte, child in self.children[here].items()]
        return found

    def _gains(self, score: float) -> tuple[list[float], list[float]]:
        """By node, what a text has gained there (infinite where no tokens lead to), and what it keeps if it goes on differently."""
        steps = [np.inf] * len(self.children)
        steps[ANYWHERE] = steps[AT_START] = 0
        kept = [0.0] * len(self.children)
        for node, children in enumerate(self.children):  # a child's number is above its parent's
            for target in self.targets[node].values():
                steps[target] = min(steps[target], steps[node] + 1)
            if self.ends[node]:
                kept[node] = score * steps[node]
            for child in children.values():
                kept[child] = kept[node]
        return [score * step for step in steps], kept


def parse_hotwords(text: str) -> list[str]:
    """Hotwords of a text that holds one a line, or several between commas; each once."""
    return list(dict.fromkeys(word for part in re.split(r"[\n,]", text) if (word := part.strip())))


def read_hotwords(path: str | Path) -> list[str]:
    """Hotwords of a UTF-8 text file, as `parse_hotwords` finds them; raises BundleError if it cannot be read or holds none."""
    try:
        found = parse_hotwords(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise BundleError(f"{path}: is not UTF-8 text; expected one hotword a line") from None
    if not found:
        raise BundleError(f"{path}: holds no hotwords; expected one a line")
    return found


class HotwordPath:
    """The way of one clip's greedy transcript through hotwords.

    Where a gain decides against the likeliest token, that place is remembered until the hotword is complete. If the text goes on
    differently, decoding returns to it and writes the likeliest token there.
    """

    def __init__(self, hotwords: Hotwords) -> None:
        self.hotwords = hotwords
        self.places = [START]  # before each token, and after the last
        self.fork: tuple[int, int] | None = None  # how many tokens came before the place, and its likeliest token

    def choose(self, logits: npt.NDArray[np.float32], end: int) -> tuple[int, int]:
        """The next token, and how many of the last tokens it replaces. logits: [vocabulary]"""
        likeliest = int(logits.argmax())
        place, written = self.places[-1], len(self.places) - 1
        onward, begin = self.hotwords.moves(place)
        token, best = likeliest, float(logits[likeliest])
        # where the text ends no hotword begins: it would be invented; nor within another one that is not complete
        for moves in (onward,) if likeliest == end or self.fork else (onward, begin):
            raised = logits[moves.tokens] + moves.gains
            if len(raised) and raised.max() > best:
                token, best = int(moves.tokens[raised.argmax()]), float(raised.max())
        dropped = 0
        if self.fork and not self.hotwords.continues(place, token):
            kept, token = self.fork
            dropped, self.fork = written - kept, None
            del self.places[kept + 1 :]
        elif not self.fork and token != likeliest:
            self.fork = written, likeliest
        self.places.append(self.hotwords.after(self.places[-1], token))
        if self.hotwords.ends[self.places[-1].node]:
            self.fork = None
        return token, dropped


def with_gains(
    likely: npt.NDArray[np.float64], places: Sequence[Place], hotwords: Hotwords, end: int
) -> npt.NDArray[np.float64]:
    """What each next token adds to the score of each beam. likely: log-probabilities [beams, vocabulary]"""
    likely = likely.copy()
    for row, place in zip(likely, places, strict=True):
        ends = row.argmax() == end
        onward, begin = hotwords.moves(place)
        onward_to = row[onward.tokens] + onward.gains
        row -= hotwords.unfinished(place)
        if not ends:
            row[begin.tokens] += begin.gains
        row[onward.tokens] = onward_to
    return likely


def _moves(gains: Mapping[int, float]) -> Moves:
    return Moves(np.array(list(gains), np.intp), np.array(list(gains.values()), np.float64))
