"""Is one way of training better than another? Differences over clips and training seeds, with intervals and p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from workbench.evaluation.scoring import FEWEST_CLIPS, Languages, clip_errors, each_language, resampled_rates

CONFIDENCE = 0.95
FEWEST_FOLDS = 3  # below which there is no interval over them
EQUIVALENCE_CONFIDENCE = 0.9


@dataclass(frozen=True)
class PairedHypotheses:
    """Two systems' transcripts of one corpus, of the same seeds in the same order."""

    references: Sequence[str]
    ours: Sequence[Sequence[str]]  # hypotheses of each seed
    theirs: Sequence[Sequence[str]]
    language: Languages = "en"  # one code for all clips, or one per clip
    speakers: Sequence[str] | None = None  # of each clip; the clips of one speaker are drawn together
    capped: bool = False  # whether a clip counts at most as many errors as its reference is long

    def by_language(self) -> list[PairedHypotheses]:
        """The clips of each language as a corpus of its own, so that every language counts alike."""
        codes = each_language(self.language, len(self.references))
        return [self.only([i for i, code in enumerate(codes) if code == wanted]) for wanted in dict.fromkeys(codes)]

    def only(self, clips: Sequence[int]) -> PairedHypotheses:
        """Some of the clips, by number."""

        def of(values: Sequence[str]) -> list[str]:
            return [values[i] for i in clips]

        codes = each_language(self.language, len(self.references))
        speakers = None if self.speakers is None else of(self.speakers)
        return PairedHypotheses(
            of(self.references),
            [of(h) for h in self.ours],
            [of(h) for h in self.theirs],
            of(codes),
            speakers,
            self.capped,
        )

    def errors(self, unit: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Errors of both [seeds, clips], and the references' lengths [clips], in characters (`cer`) or words (`wer`)."""
        codes = each_language(self.language, len(self.references))

        def of(system: Sequence[Sequence[str]]) -> npt.NDArray[np.int64]:
            rows = [[clip_errors(*clip, unit) for clip in zip(self.references, hypotheses, codes, strict=True)]
                    for hypotheses in system]  # fmt: skip
            return np.array([[e.capped if self.capped else e.total for e in row] for row in rows], np.int64)

        lengths = [
            clip_errors(text, text, code, unit).length for text, code in zip(self.references, codes, strict=True)
        ]
        return of(self.ours), of(self.theirs), np.array(lengths, np.int64)

    def summed(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values of clips, added up for each speaker where at least two speakers are known. [clips] -> [speakers or clips]"""
        if self.speakers is None or len(set(self.speakers)) < 2:
            return values
        _, speaker = np.unique(self.speakers, return_inverse=True)
        return np.bincount(speaker, values)


class DifferenceOverSeeds(TypedDict):
    """The difference between two ways of training, as `difference_over_seeds` computes it."""

    points: float  # percentage points
    ci: list[float] | None  # 95 % interval; None with fewer than 20 clips
    # 90 % interval, for equivalence: where it lies within the margin, two one-sided tests at 5 % reject a larger difference
    ci_90: list[float] | None
    p: float | None  # two-sided; None likewise
    relative: float  # relative to theirs: -0.05 is 5 % fewer errors
    seeds: int


def difference_over_seeds(
    corpora: Sequence[PairedHypotheses], unit: str = "cer", seed: int = 0, fewest_clips: int = FEWEST_CLIPS
) -> DifferenceOverSeeds:
    """Error rate(ours) - error rate(theirs), over clips *and* seeds; of several corpora, the mean of their differences.

    Variances are added: of each corpus's clips, by a bootstrap of the mean over seeds, and of the seeds, from the seeds' own
    differences. Where speakers are known, whole speakers are drawn, since clips of one voice are not independent; of a corpus with one speaker, clips.
    The interval is the difference plus or minus Student's t times the root of their sum, with the degrees of freedom
    of Welch and Satterthwaite: with three seeds that disagree it is wide, as it should be, whereas a percentile bootstrap over three seeds
    is too narrow. (Our interpretation.)

    Args:
        corpora: what is compared, all corpora with equal weight.
        unit: `cer` or `wer`.
        seed: seed of the bootstrap.
        fewest_clips: number of clips below which there is no interval.

    Returns:
        `points`: difference in percentage points; `ci`, `ci_90`: its 95 % and 90 % intervals, None with fewer than 20 clips; `p`: two-sided
        p-value, None likewise; `relative` to theirs (-0.05 is 5 % fewer); `seeds`: their number; with 1 the interval covers the clips alone.
    """
    points, base = [], []  # of each corpus: points by seed; theirs, mean over seeds
    variances: list[tuple[float, int]] = []  # with their degrees of freedom
    clips = 0
    for number, corpus in enumerate(corpora):
        ours, theirs, lengths = corpus.errors(unit)
        total = max(int(lengths.sum()), 1)
        points.append(100.0 * (ours - theirs).sum(1) / total)
        base.append(100.0 * theirs.sum(1).mean() / total)
        lengths_drawn = corpus.summed(lengths)  # of each speaker, or of each clip
        rates = resampled_rates(corpus.summed((ours - theirs).mean(0)), lengths_drawn, seed + number)
        drawn = len(lengths_drawn)
        if drawn > 1:  # a bootstrap's variance is that of n, not n - 1, draws
            variances.append((float(rates.var(ddof=1)) * drawn / (drawn - 1) / len(corpora) ** 2, drawn - 1))
        clips += len(lengths)
    by_seed = np.mean(points, 0)
    mean, theirs_mean = float(by_seed.mean()), float(np.mean(base))
    if len(by_seed) > 1:
        variances.append((float(by_seed.var(ddof=1)) / len(by_seed), len(by_seed) - 1))
    found: DifferenceOverSeeds = {
        "points": round(mean, 3),
        "ci": None,
        "ci_90": None,
        "p": None,
        "relative": mean / theirs_mean if theirs_mean else 0.0,
        "seeds": len(by_seed),
    }
    if clips < fewest_clips or not variances:
        return found
    (half, half_90), p = _student(mean, variances)
    ci, ci_90 = ([round(mean - h, 3), round(mean + h, 3)] for h in (half, half_90))
    return {**found, "ci": ci, "ci_90": ci_90, "p": p}


def mean_over_folds(points: Sequence[float]) -> tuple[float, list[float] | None]:
    """Mean of the folds' differences and its 95 % interval: Student's t over the folds, which differ in speakers and training alike.

    None in place of the interval with fewer than three folds.
    """
    values = np.asarray(points, np.float64)
    mean, folds = float(values.mean()), len(values)
    if folds < FEWEST_FOLDS:
        return round(mean, 3), None
    (half, _), _ = _student(mean, [(float(values.var(ddof=1)) / folds, folds - 1)])
    return round(mean, 3), [round(mean - half, 3), round(mean + half, 3)]


def _student(mean: float, variances: Sequence[tuple[float, int]]) -> tuple[tuple[float, float], float]:
    """Half the 95 % and the 90 % interval, and the two-sided p-value, of a mean whose variance is a sum of estimated ones."""
    from scipy.stats import t

    variance = sum(v for v, _ in variances)
    if variance == 0:
        return (0.0, 0.0), 1.0 if mean == 0 else 0.0
    freedom = variance**2 / sum(v**2 / degrees for v, degrees in variances)
    half, half_90 = (float(t.ppf((1 + c) / 2, freedom)) * variance**0.5 for c in (CONFIDENCE, EQUIVALENCE_CONFIDENCE))
    return (half, half_90), float(2 * t.sf(abs(mean) / variance**0.5, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of comparisons (Holm 1979), in the order given: reject where one is below 0.05."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
