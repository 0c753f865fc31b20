"""How right a transcript is: WER and CER under Whisper's normalizers, loops, and bootstrap intervals."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ELLIPSIS = re.compile(r"\.{2,}|…")
LOOP_REPEATS = 4  # an n-gram said this many times in a row, and more often than in the reference, is a loop
LOOP_WORDS = 8  # longest n-gram looked at


@dataclass(frozen=True)
class Errors:
    """Edit operations that turn a reference into a hypothesis."""

    substitutions: int
    deletions: int
    insertions: int
    length: int  # words (WER) or characters (CER) of the reference

    @property
    def total(self) -> int:
        """All edit operations."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class Score:
    """Word and character errors of a system on a corpus, in percent, with a 95 % bootstrap interval over clips."""

    wer: float
    wer_ci: tuple[float, float]
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    loops: int
    words: int

    @property
    def errors(self) -> int:
        """Word errors."""
        return self.substitutions + self.deletions + self.insertions

    def as_dict(self) -> dict[str, Any]:
        """Fields as JSON, rates rounded to 3 decimals."""
        rounded = {"wer": round(self.wer, 3), "wer_ci": [round(x, 3) for x in self.wer_ci], "cer": round(self.cer, 3)}
        return {**self.__dict__, **rounded}


def spelling_table() -> Path:
    """Path of Whisper's English spelling table (normalizer.json), which the whisper-normalizer package carries."""
    spec = importlib.util.find_spec("whisper_normalizer")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("whisper-normalizer is not installed; run: pip install whisper-normalizer")
    return Path(spec.submodule_search_locations[0]) / "normalizers" / "english.json"


@functools.cache
def _normalizer(language: str) -> Callable[[str], str]:
    # transformers' copies of Whisper's normalizers; English alone has spelling and number rules
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    if language == "en":
        normalizer: Callable[[str], str] = EnglishTextNormalizer(json.loads(spelling_table().read_text("utf-8")))
    else:
        normalizer = BasicTextNormalizer()
    return normalizer


def normalize(text: str, language: str = "en") -> str:
    """Text under Whisper's normalizer for a language: case, punctuation, and in English spelling and numbers.

    Ellipses go first: Whisper's English normalizer leaves one period of "press..." behind, which then counts as a word.
    """
    return _normalizer(language)(ELLIPSIS.sub(" ", text)).strip()


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Word edits between two texts that are already normalized."""
    import jiwer

    found = jiwer.process_words([reference], [hypothesis])
    return Errors(found.substitutions, found.deletions, found.insertions, len(reference.split()))


def character_errors(reference: str, hypothesis: str) -> Errors:
    """Character edits between two texts that are already normalized, spaces counted."""
    import jiwer

    found = jiwer.process_characters([reference], [hypothesis])
    return Errors(found.substitutions, found.deletions, found.insertions, len(reference))


def is_loop(hypothesis: str, reference: str) -> bool:
    """Whether a transcript repeats some n-gram of words over and over, as a decoder does that never learnt to stop."""
    said = most_repeats(hypothesis.split())
    return said >= LOOP_REPEATS and said > most_repeats(reference.split())


def most_repeats(words: Sequence[str]) -> int:
    """Largest number of times that an n-gram (n up to 8) stands in a row: 3 for "a b a b a b"."""
    best = 1 if words else 0
    for n in range(1, LOOP_WORDS + 1):
        run = 0  # words that equal the word n places before, in a row
        for i in range(n, len(words)):
            run = run + 1 if words[i] == words[i - n] else 0
            best = max(best, run // n + 1)
    return best


def score(
    references: Sequence[str], hypotheses: Sequence[str], language: str = "en", normalized: bool = True, seed: int = 0
) -> Score:
    """Score transcripts of a corpus.

    Args:
        references: transcripts as they stand, one a clip.
        hypotheses: what the system wrote, in the same order.
        language: ISO 639-1 code that chooses the normalizer.
        normalized: score under Whisper's normalizer (the field's practice), or the texts as they stand.
        seed: of the bootstrap.
    """
    pairs = list(zip(references, hypotheses, strict=True))
    if normalized:
        pairs = [(normalize(r, language), normalize(h, language)) for r, h in pairs]
    words = [word_errors(r, h) for r, h in pairs]
    characters = [character_errors(r, h) for r, h in pairs]
    errors, lengths = _counts(words)
    rates = _resampled(errors, lengths, seed)
    return Score(
        wer=_percent(words),
        wer_ci=(float(np.percentile(rates, 2.5)), float(np.percentile(rates, 97.5))),
        cer=_percent(characters),
        substitutions=sum(e.substitutions for e in words),
        deletions=sum(e.deletions for e in words),
        insertions=sum(e.insertions for e in words),
        loops=sum(is_loop(h.lower(), r.lower()) for r, h in pairs),
        words=int(lengths.sum()),
    )


def paired_difference(
    references: Sequence[str], ours: Sequence[str], theirs: Sequence[str], language: str = "en", seed: int = 0
) -> dict[str, Any]:
    """Paired bootstrap of WER(ours) - WER(theirs) over clips, in points, with its 95 % interval.

    Both systems are scored on the same resampled clips, so what a clip's difficulty does to both cancels.
    """
    wanted = [normalize(r, language) for r in references]
    first, lengths = _counts([word_errors(r, normalize(h, language)) for r, h in zip(wanted, ours, strict=True)])
    second, _ = _counts([word_errors(r, normalize(h, language)) for r, h in zip(wanted, theirs, strict=True)])
    differences = _resampled(first - second, lengths, seed)
    return {
        "points": round(float(100 * (first - second).sum() / max(lengths.sum(), 1)), 3),
        "ci": [round(float(np.percentile(differences, q)), 3) for q in (2.5, 97.5)],
    }


@dataclass(frozen=True)
class Compared:
    """Two systems' transcripts of one corpus, of the same seeds in the same order."""

    references: Sequence[str]
    ours: Sequence[Sequence[str]]  # hypotheses of each seed
    theirs: Sequence[Sequence[str]]
    language: str = "en"

    def errors(self, unit: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Errors of both [seeds, clips], and the references' lengths [clips], in characters (`cer`) or words (`wer`)."""
        count = character_errors if unit == "cer" else word_errors
        wanted = [normalize(reference, self.language) for reference in self.references]

        def of(system: Sequence[Sequence[str]]) -> npt.NDArray[np.int64]:
            said = [[normalize(h, self.language) for h in hypotheses] for hypotheses in system]
            return np.array([[count(*pair).total for pair in zip(wanted, s, strict=True)] for s in said], np.int64)

        return of(self.ours), of(self.theirs), np.array([count(r, r).length for r in wanted], np.int64)


def bootstrap_over_seeds(corpora: Sequence[Compared], unit: str = "cer", seed: int = 0) -> dict[str, Any]:
    """Paired bootstrap of error rate(ours) - error rate(theirs), over clips *and* seeds; of several corpora, their mean.

    Each resample draws seeds and clips with replacement, the same for both systems, so that the interval has both the
    corpora's and the training's chance in it. (Our interpretation: all levels resampled at once.)

    Args:
        corpora: what is compared, each corpus counting alike.
        unit: `cer` or `wer`.
        seed: of the bootstrap.

    Returns:
        `points` (difference in percentage points), its 95 % interval `ci`, and `relative` to theirs (-0.05 is 5 % fewer).
    """
    generator = np.random.default_rng(seed)
    resamples = 2000
    points, base = 0.0, 0.0
    rates = np.zeros(resamples)
    for corpus in corpora:
        first, second, lengths = corpus.errors(unit)
        difference, words = (first - second).astype(float), max(int(lengths.sum()), 1)
        points += 100 * difference.mean(0).sum() / words / len(corpora)
        base += 100 * second.mean(0).sum() / words / len(corpora)
        clips = generator.integers(0, len(lengths), (resamples, len(lengths)))
        seeds = generator.integers(0, len(first), (resamples, len(first)))
        for i, (s, c) in enumerate(zip(seeds, clips, strict=True)):
            rates[i] += 100 * difference[s][:, c].mean(0).sum() / max(lengths[c].sum(), 1) / len(corpora)
    return {
        "points": round(float(points), 3),
        "ci": [round(float(np.percentile(rates, q)), 3) for q in (2.5, 97.5)],
        "relative": float(points / base) if base else 0.0,
    }


def _counts(errors: Sequence[Errors]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return np.array([e.total for e in errors], np.int64), np.array([e.length for e in errors], np.int64)


def _percent(errors: Sequence[Errors]) -> float:
    return 100.0 * sum(e.total for e in errors) / max(sum(e.length for e in errors), 1)


def _resampled(
    errors: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], seed: int, resamples: int = 2000
) -> npt.NDArray[np.float64]:
    """Error rate in percent of each bootstrap resample of the clips. [resamples]"""
    drawn = np.random.default_rng(seed).integers(0, len(errors), (resamples, len(errors)))  # [resamples, clips]
    rates: npt.NDArray[np.float64] = 100.0 * errors[drawn].sum(1) / np.maximum(lengths[drawn].sum(1), 1)
    return rates
