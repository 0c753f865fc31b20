"""What a recogniser hands out."""

from __future__ import annotations

from dataclasses import dataclass

from .words import Word


@dataclass(frozen=True)
class Transcript:
    """What was said, and what it cost to find out."""

    text: str
    language: str  # as it was given, or found; `auto` stays where nobody speaks
    tokens: tuple[int, ...]
    stages_ms: dict[
        str, float
    ]  # detector, features, encoder, language where it was to be found, first_token, rest, detokenize; of its whole batch
    finished: bool  # False when the decoder was stopped by the cap on tokens, which follows from the clip's length
    looped: bool = False  # whether it repeated itself until the cap; one round is kept, and what is said after it
    words: tuple[Word, ...] = ()  # with their times, where they were asked for

    @property
    def latency_ms(self) -> float:
        """All stages together."""
        return sum(self.stages_ms.values())


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording in which somebody speaks."""

    start: float  # seconds
    end: float  # seconds
    transcript: Transcript
