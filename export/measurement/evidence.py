"""Whether a difference between two systems rests on enough clips for a bootstrap, and an interval by counting where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from export.edge.bundle.content import Difference
from workbench.evaluation.scoring import clip_errors

# of clips on which two systems make different numbers of errors: with fewer, even a sign test in which all point the same way cannot
# reach 5 %, and a bootstrap mostly redraws the clips on which nothing differs
FEWEST_DIFFERING = 6
POISSON_UPPER = (
    3.69,
    5.57,
    7.22,
    8.77,
    10.24,
    11.67,
)  # 97.5 % upper limit of the mean, by the number of events counted


class Pair(NamedTuple):
    """What two systems wrote of one clip."""

    reference: str
    ours: str
    theirs: str
    language: str


def with_enough_evidence(found: Difference, pairs: Sequence[Pair], unit: str) -> tuple[Difference, int | None]:
    """A difference whose interval is widened where too few clips differ for a bootstrap, which would be [0, 0] if none does.

    Each bound is then at least what the number of clips on that side allows: Poisson's 97.5 % limit of that number, times the mean
    difference on those clips (one error if there are none), over all words or characters. If no clip differs this is the rule of three.

    Args:
        found: the difference, ours minus theirs, with its bootstrap interval.
        pairs: what it was computed from.
        unit: `wer` or `cer`.

    Returns:
        The difference, and the number of clips that differ if they are so few, else None.
    """
    if found["ci"] is None:
        return found, None
    more: list[int] = []  # by how many errors, on each clip where ours has more
    fewer: list[int] = []
    for reference, ours, theirs, language in pairs:
        first, second = (clip_errors(reference, text, language, unit).total for text in (ours, theirs))
        if first != second:
            (more if first > second else fewer).append(abs(first - second))
        if len(more) + len(fewer) == FEWEST_DIFFERING:
            return found, None
    length = sum(clip_errors(p.reference, p.ours, p.language, unit).length for p in pairs)
    above, below = (
        100 * POISSON_UPPER[len(side)] * (sum(side) / len(side) if side else 1.0) / max(length, 1)
        for side in (more, fewer)
    )
    low, high = found["ci"]
    bounds = [round(min(low, -below), 3), round(max(high, above), 3)]
    return {"points": found["points"], "ci": bounds}, len(more) + len(fewer)
