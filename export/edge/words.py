"""Word times from the decoder's cross-attention: a monotone path through it (dynamic time warping)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

WITHOUT_SPACES = {
    "zh",
    "ja",
    "th",
    "lo",
    "my",
    "yue",
    "km",
}  # where each group of tokens that forms whole characters is a word
ONSET = 0.3  # a token starts where its attention first reaches this share of its maximum
SMOOTHED = 7  # positions of the median filter, as in Whisper


@dataclass(frozen=True)
class Word:
    """A word as it was written, without spaces around it."""

    text: str
    start: float  # seconds
    end: float  # seconds
    probability: float | None = None  # mean of its tokens'; None from a bundle of an earlier version

    def later(self, seconds: float) -> Word:
        """The same word, shifted by so many seconds."""
        return replace(self, start=round(seconds + self.start, 3), end=round(seconds + self.end, 3))


def timed_words(
    attention: npt.NDArray[np.float32],
    tokens: Sequence[int],
    bytes_of: Callable[[int], bytes],
    language: str,
    seconds: float,
    likely: npt.NDArray[np.float64] | None = None,
) -> list[Word]:
    """Words of a transcript, their times and, where `likely` is given, their probabilities.

    Args:
        attention: cross-attention before each token and before the end, at the clip's own positions [tokens + 1, positions].
        tokens: the transcript's tokens.
        bytes_of: bytes of each token of text.
        language: ISO 639-1 code.
        seconds: the clip's length.
        likely: log-probability of each token, and perhaps of the end.
    """
    if not tokens:
        return []
    begins, ends = token_times(attention, seconds)
    return [
        Word(
            text,
            round(float(begins[first]), 3),
            round(float(ends[last - 1]), 3),
            None if likely is None else round(float(np.exp(likely[first:last]).mean()), 4),
        )
        for text, first, last in grouped(tokens, bytes_of, language)
    ]


def token_times(
    attention: npt.NDArray[np.float32], seconds: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """When each token begins and ends, in seconds.

    A token ends where the path moves on to the next one. The next one begins only once the decoder attends to it: the path alone would
    count a pause as part of the word after it.

    attention: [tokens + 1, positions] -> [tokens], [tokens]
    """
    starts = dtw_path(-sharpened(attention))  # [tokens + 1]
    begins = starts[:-1].astype(np.float64)
    for i, (start, stop) in enumerate(pairwise(starts)):
        stretch = attention[i, start : max(stop, start + 1)]
        begins[i] += int(np.argmax(stretch >= ONSET * stretch.max()))
    a_position = seconds / attention.shape[1]
    return begins * a_position, np.maximum(starts[1:], begins) * a_position


def sharpened(attention: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """How much more a token attends to a position than the others do, smoothed over time. [tokens, positions] -> the same"""
    rows = attention.astype(np.float64)
    if len(rows) > 1:
        rows = (rows - rows.mean(0)) / np.maximum(rows.std(0), 1e-9)
    reach = SMOOTHED // 2
    if rows.shape[1] <= reach:
        return rows
    padded = np.pad(rows, ((0, 0), (reach, reach)), mode="reflect")
    smoothed: npt.NDArray[np.float64] = np.median(
        np.lib.stride_tricks.sliding_window_view(padded, SMOOTHED, axis=1), -1
    )
    return smoothed


def dtw_path(cost: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Position at which each row begins on the cheapest path that goes down or right from corner to corner (dynamic time warping).

    cost: [rows, positions] -> [rows]
    """
    rows, positions = cost.shape
    total = np.empty_like(cost)
    total[0] = cost[0].cumsum()
    for i in range(1, rows):
        along = cost[i].cumsum()
        above = total[i - 1]
        entered = np.minimum(above, np.concatenate([[np.inf], above[:-1]]))  # from above, or from above and before
        total[i] = along + np.minimum.accumulate(entered - (along - cost[i]))
    starts = np.zeros(rows, np.int64)
    i, j = rows - 1, positions - 1
    while i > 0:
        before = [total[i - 1, j], total[i - 1, j - 1] if j else np.inf, total[i, j - 1] if j else np.inf]
        step = int(np.argmin(before))
        if step == 2:
            j -= 1
            continue
        starts[i] = j
        i, j = i - 1, j - (step == 1)
    return starts


def grouped(tokens: Sequence[int], bytes_of: Callable[[int], bytes], language: str) -> list[tuple[str, int, int]]:
    """Words, and the tokens that each is made of: from the first to before the last."""
    found: list[tuple[str, int, int]] = []
    held, begin = b"", 0
    for i, token in enumerate(tokens):
        held += bytes_of(token)
        text = held.decode("utf-8", "replace")
        if "\ufffd" in text and i + 1 < len(tokens):
            continue  # the character is not complete yet
        apart = language in WITHOUT_SPACES or text.startswith(" ")
        if not found or (apart and not _is_punctuation(text.strip())):
            found.append((text, begin, i + 1))
        else:
            found[-1] = (found[-1][0] + text, found[-1][1], i + 1)
        held, begin = b"", i + 1
    return [(text.strip(), first, last) for text, first, last in found if text.strip()]


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(c).startswith("P") for c in text)


def as_dict(word: Word) -> dict[str, str | float | None]:
    """For JSON."""
    return {"text": word.text, "start": word.start, "end": word.end, "probability": word.probability}
