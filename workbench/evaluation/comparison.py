"""Is one way of training better than another? Differences over clips and training seeds, with intervals and p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from workbench.evaluation.scoring import FEWEST_CLIPS, Languages, clip_errors, each_language, resampled_rates

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedHypotheses:
    """Two systems' transcripts of one corpus, of the same seeds in the same order."""

    references: Sequence[str]
    ours: Sequence[Sequence[str]]  # hypotheses of each seed
    theirs: Sequence[Sequence[str]]
    language: Languages = "en"  # one code for all clips, or one per clip

    def errors(self, unit: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Errors of both [seeds, clips], and the references' lengths [clips], in characters (`cer`) or words (`wer`)."""
        codes = each_language(self.language, len(self.references))

        def of(system: Sequence[Sequence[str]]) -> npt.NDArray[np.int64]:
            rows = [[clip_errors(*clip, unit).total for clip in zip(self.references, hypotheses, codes, strict=True)]
                    for hypotheses in system]  # fmt: skip
            return np.array(rows, np.int64)

        lengths = [
            clip_errors(text, text, code, unit).length for text, code in zip(self.references, codes, strict=True)
        ]
        return of(self.ours), of(self.theirs), np.array(lengths, np.int64)


class DifferenceOverSeeds(TypedDict):
    """The difference between two ways of training, as `difference_over_seeds` computes it."""

    points: float  # percentage points
    ci: list[float] | None  # 95 % interval; None with fewer than 20 clips
    p: float | None  # two-sided; None likewise
    relative: float  # relative to theirs: -0.05 is 5 % fewer errors
    seeds: int


def difference_over_seeds(corpora: Sequence[PairedHypotheses], unit: str = "cer", seed: int = 0) -> DifferenceOverSeeds:
    """Error rate(ours) - error rate(theirs), over clips *and* seeds; of several corpora, the mean of their differences.

    Two variances are added: of the clips, by a bootstrap of the mean over seeds, and of the seeds, from the seeds' own
    differences. The interval is the difference plus or minus Student's t times the root of their sum, with the degrees of freedom
    of Welch and Satterthwaite: with three seeds that disagree it is wide, as it should be, whereas a percentile bootstrap over three seeds
    is too narrow. (Our interpretation.)

    Args:
        corpora: what is compared, all corpora with equal weight.
        unit: `cer` or `wer`.
        seed: seed of the bootstrap.

    Returns:
        `points`: difference in percentage points; `ci`: its 95 % interval, None with fewer than 20 clips; `p`: two-sided p-value,
        None likewise; `relative` to theirs (-0.05 is 5 % fewer); `seeds`: their number; with 1 the interval covers the clips alone.
    """
    points, base = [], []  # of each corpus: points by seed; theirs, mean over seeds
    clip_variance, clips = 0.0, 0
    for number, corpus in enumerate(corpora):
        ours, theirs, lengths = corpus.errors(unit)
        total = max(int(lengths.sum()), 1)
        points.append(100.0 * (ours - theirs).sum(1) / total)
        base.append(100.0 * theirs.sum(1).mean() / total)
        rates = resampled_rates((ours - theirs).mean(0), lengths, seed + number)
        clip_variance += float(rates.var(ddof=1)) / len(corpora) ** 2
        clips += len(lengths)
    by_seed = np.mean(points, 0)
    mean, theirs_mean = float(by_seed.mean()), float(np.mean(base))
    seed_variance = float(by_seed.var(ddof=1)) / len(by_seed) if len(by_seed) > 1 else 0.0
    found: DifferenceOverSeeds = {
        "points": round(mean, 3),
        "ci": None,
        "p": None,
        "relative": mean / theirs_mean if theirs_mean else 0.0,
        "seeds": len(by_seed),
    }
    if clips < FEWEST_CLIPS:
        return found
    half, p = _student(mean, clip_variance, clips - 1, seed_variance, len(by_seed) - 1)
    return {**found, "ci": [round(mean - half, 3), round(mean + half, 3)], "p": p}


def _student(mean: float, first: float, first_freedom: int, second: float, second_freedom: int) -> tuple[float, float]:
    """Half the interval, and the two-sided p-value, of a mean whose variance is the sum of two estimated ones."""
    from scipy.stats import t

    variance = first + second
    if variance == 0:
        return 0.0, 1.0 if mean == 0 else 0.0
    freedom = variance**2 / (first**2 / first_freedom + (second**2 / second_freedom if second_freedom else 0.0))
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * variance**0.5
    return half, float(2 * t.sf(abs(mean) / variance**0.5, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of comparisons (Holm 1979), in the order given: reject where one is below 0.05."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
