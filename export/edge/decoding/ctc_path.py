"""Paths through the positions of a CTC model: the likeliest, that of a given text, and when their words begin and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..bundle.tokens import is_unspaced


class CtcPath(NamedTuple):
    """What the tokens at the positions come to."""

    tokens: list[int]  # repetitions once, blanks not at all
    first: list[int]  # position at which each begins
    last: list[int]  # position at which each ends


def greedy_path(logits: npt.NDArray[np.float32], blank: int) -> CtcPath:
    """The likeliest token at each position, repetitions once and blanks left out. [positions, vocabulary]"""
    best = logits.argmax(-1)
    starts = np.flatnonzero(np.concatenate([[True], best[1:] != best[:-1]]))
    ends = np.concatenate([starts[1:], [len(best)]]) - 1
    kept = best[starts] != blank
    return CtcPath(best[starts][kept].tolist(), starts[kept].tolist(), ends[kept].tolist())


def align(likely: npt.NDArray[np.float64], tokens: Sequence[int], blank: int) -> CtcPath:
    """The likeliest of all paths that come to these tokens (Viterbi).

    Args:
        likely: log-probabilities [positions, vocabulary].
        tokens: a text that as many positions can hold; a blank must fit between equal tokens that follow each other.
        blank: the token that stands for nothing.
    """
    # a path goes through these states, and may skip a blank between two different tokens
    states = np.full(2 * len(tokens) + 1, blank)
    states[1::2] = tokens
    skips = np.zeros(len(states), bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    best = np.full(len(states), -np.inf)
    best[:2] = likely[0, states[:2]]
    steps = np.zeros((len(likely), len(states)), np.int8)  # states that the best path to each has moved on by
    for i, row in enumerate(likely[1:], 1):
        moves = np.full((3, len(states)), -np.inf)
        moves[0], moves[1, 1:], moves[2, 2:] = best, best[:-1], np.where(skips[2:], best[:-2], -np.inf)
        steps[i] = moves.argmax(0)
        best = moves.max(0) + row[states]
    state = len(states) - 1
    if tokens and best[state - 1] > best[state]:
        state -= 1
    path = np.empty(len(likely), np.intp)
    for i in range(len(likely) - 1, -1, -1):
        path[i] = state
        state -= int(steps[i, state])  # an int8 of numpy would overflow
    inside = [np.flatnonzero(path == 2 * i + 1) for i in range(len(tokens))]
    return CtcPath(list(tokens), [int(at[0]) for at in inside], [int(at[-1]) for at in inside])


def path_likelihood(likely: npt.NDArray[np.float64], path: CtcPath) -> npt.NDArray[np.float64]:
    """Each token's log-probability where it is the likeliest within its positions. likely: [positions, vocabulary] -> [tokens]"""
    return np.array([likely[first : last + 1, token].max() for token, first, last in zip(*path, strict=True)])


def words_of(path: CtcPath, bytes_of: Callable[[int], bytes], each_character: bool) -> list[tuple[bytes, int, int]]:
    """Words, and the positions at which each begins and ends.

    Args:
        path: the tokens and their positions.
        bytes_of: bytes of each token.
        each_character: whether each character of a script without spaces is a word.
    """
    found: list[tuple[bytes, int, int]] = []
    inside = False
    for token, first, last in zip(*path, strict=True):
        spelled = bytes_of(token)
        inside = inside and not spelled[:1].isspace()
        if inside and each_character:
            said, after = found[-1][0].decode("utf-8", "replace"), spelled.decode("utf-8", "replace")
            # a part of a character continues it, and letters and digits of other scripts stay together
            apart = any(c == "\ufffd" or is_unspaced(c) for c in (said[-1:], after[:1]) if c)
            inside = "\ufffd" in said or not apart
        if not (body := spelled.strip()):
            continue
        if inside:
            before, begin, _ = found[-1]
            found[-1] = (before + body, begin, last)
        else:
            found.append((body, first, last))
        inside = True
    return found
