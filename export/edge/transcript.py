"""What a recogniser returns."""

from __future__ import annotations

from dataclasses import dataclass

from .words import Word


@dataclass(frozen=True)
class Transcript:
    """What was said, and how long transcribing it took."""

    text: str
    language: str  # as given or detected; stays `auto` where there is no speech
    tokens: tuple[int, ...]
    # detector, features, encoder, language where it was detected, first_token, rest, detokenize; of its whole batch
    stages_ms: dict[str, float]
    finished: bool  # False if the decoder reached the token limit, which follows from the clip's length
    looped: bool = (
        False  # whether it repeated itself up to the limit; one repetition is kept, and what is said after it
    )
    words: tuple[Word, ...] = ()  # with their times, where they were asked for
    # mean log-probability of its tokens and, if a decoder finished it, of its end; None where words were not asked for
    logprob: float | None = None

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
