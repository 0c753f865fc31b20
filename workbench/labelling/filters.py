"""Which pseudo-labels are fit to train on: pure functions of a label, and the reasons why one is not."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from workbench.evaluation.scoring import is_loop, most_repeats, normalize, score

# Characters per second of speech. Common Voice, 26 languages with alphabets, clips of 4 s or more: 98 of 100 have at least 5.9, none more than 21.6.
SLOWEST_SPEECH, FASTEST_SPEECH = 6.0, 22.0
MAX_ROUNDS = 6  # most repetitions of a phrase that may really have been said
ROUNDS = re.compile(r"(.{2,}?)(?:\s*\1)+")  # a phrase that is repeated


@dataclass(frozen=True)
class LabelFilters:
    """Bounds of a good label; None switches a filter off."""

    max_wer: float | None = 10.0  # percent, against a reference where there is one (Distil-Whisper, section 4)
    max_compression: float | None = 2.4  # text bytes over zlib bytes, as in Whisper: loops compress well
    min_confidence: float | None = -1.0  # mean log-probability per token, as in Whisper
    min_rate: float | None = 2.0  # characters per second, below which speech was left out
    max_rate: float | None = 30.0  # characters per second, above which text was hallucinated
    min_language: float | None = 0.5  # probability of the language, where the model detected it


@dataclass(frozen=True)
class Label:
    """A pseudo-label and what it is judged by."""

    text: str
    seconds: float
    language: str
    confidence: float  # mean log-probability per token
    language_probability: float | None = None  # None where the user named the language
    reference: str = ""

    def compression(self) -> float:
        """How many times zlib makes the text smaller; a short text is never a loop by this measure.

        Repetitions of a phrase that may really have been said count once.
        """
        text = ROUNDS.sub(r"\1", self.text) if self.is_spoken_repetition() else self.text
        data = text.encode()
        return len(data) / len(zlib.compress(data)) if data else 0.0

    def is_spoken_repetition(self) -> bool:
        """Whether a text that repeats itself takes about as long as saying it does, so that it may really have been said.

        A loop repeats more often, and has more text than anybody speaks in that time, or only a few words for a long stretch of music.
        """
        rounds = most_repeats(self.text.lower().split())
        return rounds <= MAX_ROUNDS and SLOWEST_SPEECH <= self.rate() <= FASTEST_SPEECH

    def rate(self) -> float:
        """Characters per second."""
        return len(self.text) / max(self.seconds, 1e-6)

    def wer(self) -> float | None:
        """WER in percent against the reference, if there is one."""
        return score([self.reference], [self.text], self.language).wer if self.reference else None

    def figures(self) -> dict[str, float | str | None]:
        """Everything measured, for manifest and report."""
        wer = self.wer()
        return {
            "confidence": round(self.confidence, 4),
            "language_probability": None if self.language_probability is None else round(self.language_probability, 4),
            "compression": round(self.compression(), 3),
            "rate": round(self.rate(), 2),
            "wer": None if wer is None else round(wer, 2),
        }


def reasons(label: Label, limits: LabelFilters) -> list[str]:
    """Names of the filters that reject a label; none if it is fit."""
    if not normalize(label.text, label.language):
        return ["empty"]
    wer = label.wer()
    tests = {
        "repetition": is_loop(label.text.lower(), label.reference.lower()) and not label.is_spoken_repetition(),
        "compression": limits.max_compression is not None and label.compression() > limits.max_compression,
        "confidence": limits.min_confidence is not None and label.confidence < limits.min_confidence,
        "slow": limits.min_rate is not None and label.rate() < limits.min_rate,
        "fast": limits.max_rate is not None and label.rate() > limits.max_rate,
        "language": limits.min_language is not None
        and label.language_probability is not None
        and label.language_probability < limits.min_language,
        "wer": limits.max_wer is not None and wer is not None and wer > limits.max_wer,
    }
    return [name for name, rejected in tests.items() if rejected]
