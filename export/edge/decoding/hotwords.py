"""Hotwords: names and terms that a transcript is likely to hold. The decoder's logits are raised for tokens that spell them.

Words are matched by their bytes, whatever tokens they are divided into, so that the model's own tokenizer is not needed. A prefix
that turns out to begin another word gains nothing in the end: greedy decoding takes it back, a beam loses what it gained
(docs/decisions/0025-hotwords.md).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..bundle.manifest import BundleError
from ..bundle.tokens import Detokenizer, is_unspaced, is_within_word

DEFAULT_SCORE = 2.0  # chosen on clips of other speakers than the test; docs/hotwords.md has the figures
MAX_WORDS = 5000
MAX_BYTES = 100  # of a word in UTF-8
MAX_SCORE = 20.0
MAX_TAKEN_BACK = 200  # tokens of a clip that greedy decoding takes back at most, each of which costs a step
ANYWHERE, AT_START = 0, 1  # nodes that words begin at: after any token; where no letter comes before


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
    """Words or phrases in a form that decoding uses; made by `Recognizer.new_hotwords`.

    Every token on the shortest way to spell a hotword gains `score`, so a word in four tokens gains four times as much as one in a single token.

    Args:
        words: as they shall be written; a word in lower case is also expected with a capital.
        detokenize: the bundle's vocabulary.
        score: in nats.
        suppressed: tokens that the model never writes.

    Raises:
        BundleError: a word is empty, too long or cannot be written with the vocabulary, there are too many, or the score is out of range.
    """

    def __init__(
        self, words: Sequence[str], detokenize: Detokenizer, score: float = DEFAULT_SCORE, suppressed: Collection[int] = ()
    ) -> None:  # fmt: skip
        if not 0 < score <= MAX_SCORE:
            raise BundleError(f"the score of hotwords is {score:g}; expected above 0, at most {MAX_SCORE:g}")
        if isinstance(words, str) or not all(isinstance(word, str) for word in words):
            raise BundleError("hotwords: expected a list of texts")
        if not 0 < len(words) <= MAX_WORDS:
            raise BundleError(f"there are {len(words)} hotwords; expected 1 to {MAX_WORDS}")
        self.children: list[dict[int, int]] = [{}, {}]  # of each node, by the next byte
        self.ends = [False, False]  # whether a hotword ends at a node, unless a letter follows
        self.complete = [False, False]  # whether one ends there, whatever follows: in a script without spaces
        forms = [self._add(" ".join(unicodedata.normalize("NFC", w).split()), i) for i, w in enumerate(words, 1)]
        self.bytes_of, self.within_word = detokenize.bytes_of, detokenize.within_word
        self.tokens = {spelled: i for spelled, i in detokenize.ids.items() if i not in suppressed}
        self.prefixes = detokenize.prefixes
        self.targets = [self._spelled_from(node) for node in range(len(self.children))]  # by node and token
        self.gained = self._gains(score)  # by node
        lacking = [w for w, ends in zip(words, forms, strict=True) if all(np.isinf(self.gained[end]) for end in ends)]
        if lacking:
            raise BundleError(
                f"the bundle's vocabulary lacks tokens for {', '.join(map(repr, lacking[:5]))}; take them out of the "
                "hotwords, or export the bundle with a larger vocabulary"
            )
        anywhere = self.targets[ANYWHERE]
        self._begin = [self._moves(ANYWHERE, targets) for targets in (anywhere, {**anywhere, **self.targets[AT_START]})]
        self._onward: dict[int, Moves] = {}  # by node

    def moves(self, place: Place) -> tuple[Moves, Moves]:
        """Tokens that continue the hotword at a place, and tokens that begin one there."""
        if place.node not in self._onward:
            onward = self.targets[place.node] if place.node > AT_START else {}
            self._onward[place.node] = self._moves(place.node, onward)
        return self._onward[place.node], self._begin[place.at_start]

    def after(self, place: Place, token: int) -> Place:
        """The place after a token."""
        spelled = self.bytes_of(token).decode("utf-8", "replace")
        at_start = not is_within_word(spelled[-1]) if spelled else place.at_start
        for node in (place.node, ANYWHERE, *([AT_START] if place.at_start else [])):
            if token in self.targets[node]:
                return Place(self.targets[node][token], at_start)
        return Place(ANYWHERE, at_start)

    def continues(self, place: Place, token: int) -> bool:
        """Whether a token spells some more of the hotword at a place."""
        return place.node > AT_START and token in self.targets[place.node]

    def ends_before(self, place: Place, token: int) -> bool:
        """Whether the text at a place is a whole hotword if this token follows."""
        return self.ends[place.node] and not (token < len(self.within_word) and self.within_word[token])

    def _moves(self, node: int, targets: Mapping[int, int]) -> Moves:
        gains = [self.gained[to] - self.gained[node] for to in targets.values()]
        return Moves(np.array(list(targets), np.intp), np.array(gains, np.float64))

    def _add(self, word: str, number: int) -> list[int]:
        """Add a word to the tree; returns the nodes that it ends at."""
        size = len(word.encode("utf-8", "replace"))
        if not 0 < size <= MAX_BYTES:
            raise BundleError(f"hotword {number} ({word[:40]!r}) has {size} bytes; expected 1 to {MAX_BYTES}")
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise BundleError(f"hotword {number} ({word[:40]!r}) is not Unicode text")
        forms = {word, word[0].upper() + word[1:]} if word.islower() else {word}
        begins_anywhere, complete = is_unspaced(word[0]), is_unspaced(word[-1])
        return [
            end
            for form in forms
            for end in (
                self._insert(ANYWHERE, form if begins_anywhere else f" {form}", complete),
                self._insert(AT_START, form, complete),
            )
        ]

    def _insert(self, node: int, form: str, complete: bool) -> int:
        for byte in form.encode():
            if byte not in self.children[node]:
                self.children[node][byte] = len(self.children)
                self.children.append({})
                self.ends.append(False)
                self.complete.append(False)
            node = self.children[node][byte]
        self.ends[node], self.complete[node] = True, self.complete[node] or complete
        return node

    def _spelled_from(self, node: int) -> dict[int, int]:
        """The node that each token leads to from a node, of the tokens that spell some more of a hotword."""
        found: dict[int, int] = {}
        walks = [(node, b"")]
        while walks:
            here, spelled = walks.pop()
            if spelled in self.tokens:
                found[self.tokens[spelled]] = here
            if spelled in self.prefixes:
                walks += [(child, spelled + bytes([byte])) for byte, child in self.children[here].items()]
        return found

    def _gains(self, score: float) -> list[float]:
        """By node, what a text has gained there; infinite where no tokens lead to."""
        steps = [np.inf] * len(self.children)
        steps[ANYWHERE] = steps[AT_START] = 0
        for node in range(len(self.children)):  # a child's number is above its parent's
            for target in self.targets[node].values():
                steps[target] = min(steps[target], steps[node] + 1)
        return [score * step for step in steps]


def parse_hotwords(text: str, separators: str = "\n,") -> list[str]:
    """Hotwords of a text in which these characters separate them; each once."""
    parts = re.split(f"[{separators}]", text)
    return list(dict.fromkeys(word for part in parts if (word := part.strip())))


def read_hotwords(path: str | Path) -> list[str]:
    """Hotwords of a UTF-8 text file, one a line; raises BundleError if it cannot be read or holds none."""
    try:
        found = parse_hotwords(Path(path).read_text(encoding="utf-8-sig"), "\n")
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise BundleError(f"{path}: is not UTF-8 text; expected one hotword a line") from None
    if not found:
        raise BundleError(f"{path}: holds no hotwords; expected one a line")
    return found


class HotwordPath:
    """Where one clip's greedy transcript is within hotwords.

    Where a gain decides against the likeliest token, that place is remembered until the hotword is complete. If the text goes on
    differently, decoding returns to it and writes the likeliest token there.
    """

    def __init__(self, hotwords: Hotwords) -> None:
        self.hotwords = hotwords
        self.places = [START]  # before each token, and after the last
        self.fork: tuple[int, int] | None = None  # how many tokens came before the place, and its likeliest token
        self.taken_back = 0  # tokens so far

    def choose(self, logits: npt.NDArray[np.float32], end: int) -> tuple[int, int]:
        """The next token, and how many of the last tokens it replaces. logits: [vocabulary]"""
        likeliest = int(logits.argmax())
        place, written = self.places[-1], len(self.places) - 1
        token, best = likeliest, float(logits[likeliest])
        for moves in self._allowed(likeliest == end):
            raised = logits[moves.tokens] + moves.gains
            if len(raised) and raised.max() > best:
                token, best = int(moves.tokens[raised.argmax()]), float(raised.max())
        if self.fork and not self.hotwords.continues(place, token):
            if not self.hotwords.ends_before(place, token):
                return self.take_back()
            self.fork = None
        if not self.fork and token != likeliest:
            self.fork = written, likeliest
        self._write(token)
        return token, 0

    def take_back(self) -> tuple[int, int]:
        """Return to where a gain decided: the likeliest token there, and how many of the last tokens it replaces."""
        assert self.fork is not None  # noqa: S101  the callers have looked
        kept, token = self.fork
        dropped, self.fork = len(self.places) - 1 - kept, None
        del self.places[kept + 1 :]
        self.taken_back += dropped
        self._write(token)
        return token, dropped

    def _allowed(self, text_ends: bool) -> list[Moves]:
        """The moves that gain: none that would add a hotword where the text ends, nor one within another that is not complete."""
        onward, begin = self.hotwords.moves(self.places[-1])
        if self.fork:
            return [onward, begin] if self.hotwords.ends[self.places[-1].node] and not text_ends else [onward]
        return [] if text_ends or self.taken_back > MAX_TAKEN_BACK else [onward, begin]

    def _write(self, token: int) -> None:
        self.places.append(self.hotwords.after(self.places[-1], token))
        if self.hotwords.complete[self.places[-1].node]:
            self.fork = None


class BeamPlaces:
    """How far each beam has come in a hotword, and what it has gained there so far.

    With its gain a token is at most certain: a sum of gains would otherwise raise the mean of a short text more than that of a long one.

    Args:
        hotwords: the words.
        end: the token that ends a text.
    """

    def __init__(self, hotwords: Hotwords, end: int) -> None:
        self.hotwords, self.end = hotwords, end
        self.places = [START]
        self.unfinished = np.zeros(1)  # what is lost where the text goes on differently
        self.gained = np.zeros((1, 1))  # by every next token

    def raised(self, likely: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What each next token adds to the score of each beam. likely: log-probabilities [beams, vocabulary] -> the same shape"""
        raised = likely.copy()
        for row, place, unfinished, out in zip(likely, self.places, self.unfinished, raised, strict=True):
            onward, begin = self.hotwords.moves(place)
            ends = row.argmax() == self.end
            if not ends:
                out[begin.tokens] = np.minimum(row[begin.tokens] + begin.gains, 0)
            if self.hotwords.ends[place.node]:  # only a letter makes another word of it
                within = self.hotwords.within_word
                out[: len(within)][within[: len(out)]] -= unfinished
            else:
                out -= unfinished
            if unfinished or not ends:
                out[onward.tokens] = np.minimum(row[onward.tokens] + onward.gains, 0)
        self.gained = raised - likely
        return raised

    def go_on(self, chosen: Sequence[tuple[int, int]]) -> None:
        """Continue with some beams, each another one's successor: (that one's number, the next token)."""
        places, unfinished = [], []
        for row, token in chosen:
            before, kept = self.places[row], float(self.unfinished[row])
            places.append(self.hotwords.after(before, token))
            if self.hotwords.ends_before(before, token) and not self.hotwords.continues(before, token):
                kept = 0.0  # the word before is complete
            complete = self.hotwords.complete[places[-1].node]
            unfinished.append(0.0 if complete else kept + float(self.gained[row, token]))
        self.places, self.unfinished = places, np.array(unfinished)
