"""Where the tokens of a draft come from: an earlier transcript of the same speech, or repetitions within the text.

A draft only proposes. What the decoder would not have written is discarded, so that a bad draft costs time and never changes the text
(export/edge/decoding/drafted.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

NEAR = 6  # tokens before and after the expected place in which an earlier transcript is realigned


class Draft(Protocol):
    """Proposes the next tokens of one clip's text. A draft may remember what it was asked: take a new one for each clip."""

    def __call__(self, written: Sequence[int]) -> Sequence[int]:
        """Tokens that may come next, of any number; none where it has no idea.

        Args:
            written: the text's tokens so far, without the prompt. Each call's begin with those of the call before.
        """
        ...


class EarlierText:
    """Proposes what an earlier transcript has at the place that the text has come to.

    Where the two differ, the place is found again by the last token: the nearest one like it, or else as if one token had been replaced.

    Args:
        tokens: of the earlier transcript.

    Raises:
        TypeError: it is given the text instead of its tokens.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        given: object = tokens
        if isinstance(given, str):  # a sequence, too
            raise TypeError(
                "expected the tokens of an earlier transcript, such as `transcript.tokens`, and not its text"
            )
        self.tokens = list(tokens)
        self.place = self.read = (
            0  # the next token of the earlier transcript; how many of the text's have been looked at
        )

    def __call__(self, written: Sequence[int]) -> Sequence[int]:
        """The rest of the earlier transcript."""
        for token in written[self.read :]:
            near = range(max(0, self.place - NEAR), min(len(self.tokens), self.place + NEAR))
            alike = [i for i in near if self.tokens[i] == token]
            self.place = 1 + min(alike, key=lambda i: abs(i - self.place), default=self.place)
        self.read = len(written)
        return self.tokens[self.place :]


class PromptLookup:
    """Proposes what followed the last tokens where they stood before in the same text: n-gram or prompt lookup.

    Args:
        size: how many tokens must be alike.
        most: tokens that are proposed.
    """

    def __init__(self, size: int = 3, most: int = 8) -> None:
        self.size, self.most = size, most

    def __call__(self, written: Sequence[int]) -> Sequence[int]:
        """What came after the latest earlier place with the same last tokens."""
        last = list(written[-self.size :])
        for end in range(len(written) - 1, self.size - 1, -1):
            if list(written[end - self.size : end]) == last:
                return written[end : end + self.most]
        return []
