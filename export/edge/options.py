"""What a transcription is asked for besides its waves; `Recognizer.transcribe` describes each option."""

from __future__ import annotations

from dataclasses import dataclass

from .decoding.drafts import Draft
from .decoding.hotwords import Hotwords
from .decoding.language_model import LanguageModel


@dataclass(frozen=True)
class Options:
    """Options of one call, checked by the recogniser."""

    language: str
    beams: int = 1
    words: bool = False
    hotwords: Hotwords | None = None
    lm: LanguageModel | None = None
    draft: Draft | None = None
    min_logprob: float | None = None

    @property
    def read_again(self) -> bool:
        """Whether the tokens' probabilities are needed, for which a decoder reads the transcript once more."""
        return self.words or self.min_logprob is not None
