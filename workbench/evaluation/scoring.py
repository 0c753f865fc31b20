"""How right a transcript is: WER and CER, each clip in its own language, loops, and 95 % intervals."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import numpy.typing as npt

from workbench.text.normalizers import fold, normalize, normalizer_name, spaced

if TYPE_CHECKING:
    from workbench.corpus import Utterance

__all__ = ["FEWEST_CLIPS", "Errors", "Languages", "Score", "character_errors", "clip_errors", "each_language", "headline", "is_loop",
           "most_repeats", "normalize", "normalizers_of", "paired_difference", "resampled_rates", "score", "score_utterances", "word_errors"]  # fmt: skip

LOOP_REPEATS = 4  # an n-gram repeated this often in a row, and more often than in the reference, is a loop
LOOP_WORDS = 8  # longest n-gram looked at
FEWEST_CLIPS = 20  # with fewer, a bootstrap interval is not meaningful
RESAMPLES = 2000
# one code for all clips, or one per clip
Languages = str | Sequence[str]


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

    @property
    def capped(self) -> int:
        """All edit operations, but at most as many as the reference is long: a transcript that loops is wholly wrong, and no more."""
        return min(self.total, self.length)


@dataclass(frozen=True)
class Score:
    """Word and character errors of a system on a corpus, in percent, with 95 % bootstrap intervals over clips."""

    wer: float
    wer_ci: tuple[float, float] | None  # None with fewer than FEWEST_CLIPS clips
    wer_folded: float  # the same with diacritics folded: "numero" equals "número"
    cer: float
    cer_ci: tuple[float, float] | None
    substitutions: int
    deletions: int
    insertions: int
    loops: int
    words: int
    headline: str  # the rate to quote: `cer` where a language does not separate words, else `wer`

    @property
    def errors(self) -> int:
        """Word errors."""
        return self.substitutions + self.deletions + self.insertions

    def as_dict(self) -> dict[str, object]:
        """Fields as JSON, rates rounded to 3 decimals."""
        rates = {name: round(getattr(self, name), 3) for name in ("wer", "wer_folded", "cer")}
        return {**self.__dict__, **rates, "wer_ci": _rounded(self.wer_ci), "cer_ci": _rounded(self.cer_ci)}


def headline(languages: Languages) -> str:
    """The rate to quote first: `cer` if a clip's language writes no spaces between words (Chinese, Japanese, Thai, ...), else `wer`."""
    return "wer" if all(spaced(code) for code in _codes(languages)) else "cer"


def normalizers_of(languages: Languages) -> dict[str, str]:
    """Name and version of the normalizer of each language among some clips."""
    return {code: normalizer_name(code) for code in _codes(languages)}


def _codes(languages: Languages) -> list[str]:
    return sorted({languages} if isinstance(languages, str) else set(languages))


def each_language(languages: Languages, clips: int) -> list[str]:
    """A language code for every clip; raises ValueError where their numbers differ."""
    each = [languages] * clips if isinstance(languages, str) else list(languages)
    if len(each) != clips:
        raise ValueError(f"{len(each)} languages for {clips} clips; expected one code for all, or one per clip")
    return each


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
    """Largest number of consecutive repetitions of an n-gram (n up to 8): 3 for "a b a b a b"."""
    best = 1 if words else 0
    for n in range(1, LOOP_WORDS + 1):
        run = 0  # words that equal the word n places before, in a row
        for i in range(n, len(words)):
            run = run + 1 if words[i] == words[i - n] else 0
            best = max(best, run // n + 1)
    return best


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    language: Languages = "en",
    normalized: bool = True,
    seed: int = 0,
) -> Score:
    """Score transcripts of a corpus.

    Args:
        references: transcripts without normalization, one per clip.
        hypotheses: what the system wrote, in the same order.
        language: Whisper's code of the language, which chooses the normalizer; one for all clips, or one per clip.
        normalized: score normalized texts (the field's practice), or the texts as they stand.
        seed: seed of the bootstrap.

    Raises:
        ValueError: references, hypotheses and languages differ in number.
    """
    pairs = list(zip(references, hypotheses, each_language(language, len(references)), strict=True))
    prepared = [(normalize(r, code), normalize(h, code), code) if normalized else (r, h, code) for r, h, code in pairs]
    words = [word_errors(r, h) for r, h, _ in prepared]
    folded = [word_errors(fold(r), fold(h)) for r, h, _ in prepared] if normalized else words
    characters = [_character_errors(r, h, code) for r, h, code in prepared]
    return Score(
        wer=_percent(words),
        wer_ci=_interval(words, seed),
        wer_folded=_percent(folded),
        cer=_percent(characters),
        cer_ci=_interval(characters, seed),
        substitutions=sum(e.substitutions for e in words),
        deletions=sum(e.deletions for e in words),
        insertions=sum(e.insertions for e in words),
        loops=sum(is_loop(h.lower(), r.lower()) for r, h, _ in prepared),
        words=sum(e.length for e in words),
        headline=headline(language),
    )


def score_utterances(utterances: Sequence[Utterance], hypotheses: Sequence[str], normalized: bool = True) -> Score:
    """Score what a system wrote of some utterances, each in its own language; arguments and errors as for `score`."""
    return score([u.text for u in utterances], hypotheses, [u.language for u in utterances], normalized)


@functools.lru_cache(maxsize=1 << 18)  # a study compares the same transcripts many times
def clip_errors(reference: str, hypothesis: str, language: str, unit: str = "wer") -> Errors:
    """Edits that a clip's transcript needs after normalization: of words (`wer`) or characters (`cer`)."""
    wanted, found = normalize(reference, language), normalize(hypothesis, language)
    return word_errors(wanted, found) if unit == "wer" else _character_errors(wanted, found, language)


def _character_errors(reference: str, hypothesis: str, language: str) -> Errors:
    """Character edits; where words are not separated, spaces do not count."""
    if not spaced(language):
        reference, hypothesis = reference.replace(" ", ""), hypothesis.replace(" ", "")
    return character_errors(reference, hypothesis)


class Difference(TypedDict):
    """The difference between two systems' error rates."""

    points: float  # percentage points
    ci: list[float] | None  # 95 % interval; None with fewer than 20 clips


def paired_difference(
    references: Sequence[str],
    ours: Sequence[str],
    theirs: Sequence[str],
    language: Languages = "en",
    seed: int = 0,
    unit: str = "wer",
) -> Difference:
    """Paired bootstrap of error rate(ours) - error rate(theirs) over clips, in points, with its 95 % interval.

    Both systems are scored on the same resampled clips, so what a clip's difficulty does to both cancels.

    Args:
        references: transcripts as they stand.
        ours: the first system's transcripts.
        theirs: the second system's.
        language: as for `score`.
        seed: seed of the bootstrap.
        unit: `wer` or `cer`.

    Returns:
        `points`, and `ci`, which is None with fewer than 20 clips.
    """
    codes = each_language(language, len(references))
    first, lengths = _counts([clip_errors(*clip, unit) for clip in zip(references, ours, codes, strict=True)])
    second, _ = _counts([clip_errors(*clip, unit) for clip in zip(references, theirs, codes, strict=True)])
    return {
        "points": round(float(100 * (first - second).sum() / max(lengths.sum(), 1)), 3),
        "ci": _rounded(_percentiles(first - second, lengths, seed)),
    }


def _counts(errors: Sequence[Errors]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return np.array([e.total for e in errors], np.int64), np.array([e.length for e in errors], np.int64)


def _percent(errors: Sequence[Errors]) -> float:
    return 100.0 * sum(e.total for e in errors) / max(sum(e.length for e in errors), 1)


def _rounded(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [round(bound, 3) for bound in interval]


def _interval(errors: Sequence[Errors], seed: int) -> tuple[float, float] | None:
    return _percentiles(*_counts(errors), seed)


def _percentiles(
    errors: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], seed: int
) -> tuple[float, float] | None:
    """95 % percentile interval of an error rate in percent over clips; None where they are too few."""
    if len(errors) < FEWEST_CLIPS:
        return None
    rates = resampled_rates(errors, lengths, seed)
    return float(np.percentile(rates, 2.5)), float(np.percentile(rates, 97.5))


def resampled_rates(
    errors: npt.NDArray[np.int64] | npt.NDArray[np.float64], lengths: npt.NDArray[np.int64], seed: int
) -> npt.NDArray[np.float64]:
    """Error rate in percent of each bootstrap resample of the clips. [resamples]"""
    drawn = np.random.default_rng(seed).integers(0, len(errors), (RESAMPLES, len(errors)))  # [resamples, clips]
    rates: npt.NDArray[np.float64] = 100.0 * errors[drawn].sum(1) / np.maximum(lengths[drawn].sum(1), 1)
    return rates
