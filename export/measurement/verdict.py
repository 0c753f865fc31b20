"""What a measurement says in words: which student to ship, and why. Every claim follows from a 95 % interval, never from a point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from export.edge.bundle.content import Difference
from export.measurement.content import Section, SystemRow
from export.measurement.evidence import Pair, with_enough_evidence
from export.measurement.latency import total_ms
from workbench.evaluation.scoring import FEWEST_CLIPS, RESAMPLES, paired_difference

UNUSABLE = 50.0  # percent of errors; a system whose whole interval lies above it is unusable, whatever its teacher does
MARGIN = 0.5  # points of WER or CER by which a student may be worse and still counts as no worse
Finding = Literal["better", "no worse", "worse within the margin", "worse", "cannot be told"]
ACCEPTABLE: tuple[Finding, ...] = ("better", "no worse", "worse within the margin")
Interval = tuple[float, float]


@dataclass(frozen=True)
class Student:
    """One precision of a student on one corpus, compared with its teacher."""

    run: str
    name: str  # as in the report
    section: Section
    row: SystemRow
    difference: Difference  # of error rates, student minus teacher
    differing: int | None  # clips that the difference rests on, where so few that its interval is counted; else None
    speedup_interval: Interval | None  # None with too few clips

    @property
    def unit(self) -> str:
        """The rate that counts: `wer`, or `cer` where words are not separated."""
        return self.section["corpus"]["headline"]

    @property
    def speedup(self) -> float:
        """How many times as fast as the teacher: the ratio of median latencies."""
        return self.row["speedup"]

    @property
    def unusable(self) -> bool:
        """Whether its error rate is shown to be above 50 %."""
        interval = self.row["cer_ci"] if self.unit == "cer" else self.row["wer_ci"]
        return interval is not None and interval[0] > UNUSABLE

    @property
    def finding(self) -> Finding:
        """What its interval says of it."""
        return finding(self.difference["ci"])


def finding(interval: Sequence[float] | None, margin: float = MARGIN) -> Finding:
    """What the 95 % interval of a difference (student minus teacher, in points; below 0 is better) says.

    `no worse` means worse by no more than the margin; an interval that reaches beyond it says neither that nor the opposite.
    """
    if interval is None:
        return "cannot be told"
    low, high = interval
    if high < 0:
        return "better"
    if high <= margin:
        return "no worse" if low <= 0 else "worse within the margin"
    return "worse" if low > 0 else "cannot be told"


def students_of(run: str, section: Section) -> list[Student]:
    """Every student of a corpus's section, in the report's order."""
    teacher = section["systems"][0]
    out = []
    unit = section["corpus"]["headline"]
    for row in section["systems"][1:]:
        reported = row["cer_difference"] if unit == "cer" else row["wer_difference"]
        pairs = [
            Pair(c["reference"], c["hypotheses"][row["name"]], c["hypotheses"][teacher["name"]], c["language"])
            for c in section["clips"]
        ]
        difference, differing = with_enough_evidence(reported, pairs, unit)
        speed = speedup_interval(section, row["name"], teacher["name"])
        out.append(Student(run, row["name"], section, row, difference, differing, speed))
    return out


def clip_latencies(section: Section, name: str) -> npt.NDArray[np.float64]:
    """A system's latency on each clip, from file to text. [clips], ms"""
    return np.array([total_ms(clip["stages_ms"][name]) for clip in section["clips"]])


def median_interval(values: npt.NDArray[np.float64]) -> Interval | None:
    """95 % bootstrap interval of a median over clips; None with too few."""
    return _percentiles(np.median(values[_drawn(len(values))], 1)) if len(values) >= FEWEST_CLIPS else None


def speedup_interval(section: Section, name: str, teacher: str) -> Interval | None:
    """95 % bootstrap interval of the ratio of median latencies, teacher's to student's, over the same clips; None with too few."""
    ours, theirs = clip_latencies(section, name), clip_latencies(section, teacher)
    if len(ours) < FEWEST_CLIPS:
        return None
    drawn = _drawn(len(ours))
    return _percentiles(np.median(theirs[drawn], 1) / np.median(ours[drawn], 1))


def _drawn(clips: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, clips, (RESAMPLES, clips))  # [resamples, clips]


def _percentiles(values: npt.NDArray[np.float64]) -> Interval:
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


def same_clips(a: Section, b: Section) -> bool:
    """Whether two sections were measured on the same clips with the same references."""
    first, second = ([(c["id"], c["reference"], c["language"]) for c in part["clips"]] for part in (a, b))
    return first == second


def compare(a: Student, b: Student) -> Difference | None:
    """The difference of two students' error rates, a minus b, over the clips that both transcribed; None if those are not the same."""
    if not same_clips(a.section, b.section):
        return None
    pairs = [
        Pair(c["reference"], c["hypotheses"][a.name], d["hypotheses"][b.name], c["language"])
        for c, d in zip(a.section["clips"], b.section["clips"], strict=True)
    ]
    references, ours, theirs, languages = (list(column) for column in zip(*pairs, strict=True))
    found = paired_difference(references, ours, theirs, languages, unit=a.unit)
    return with_enough_evidence({"points": found["points"], "ci": found["ci"]}, pairs, a.unit)[0]


@dataclass(frozen=True)
class Choice:
    """The student to ship, and in a sentence why it and not another that would do."""

    student: Student | None
    reason: str


def choose(students: Sequence[Student], named: Callable[[Student], str]) -> Choice:
    """The fastest student that is no worse than its teacher, and faster or smaller than it.

    Those whose speed-up's interval overlaps the fastest one's count as equally fast. Among them one wins that makes fewer errors than each
    other, if the intervals show that; else the smallest.

    Args:
        students: measured on the same clips against the same teacher.
        named: what to call one.
    """
    fit = [s for s in students if s.finding in ACCEPTABLE and gains(s) and not s.unusable]
    if not fit:
        return Choice(None, "")
    if len(fit) == 1:
        only = "It is the only one that is shown to be no worse than the teacher"
        others = [s for s in students if s.finding in ACCEPTABLE and s is not fit[0]]
        if not all(gains(s) for s in others):
            only += ", and faster or smaller than it"
        if any(s.unusable for s in others):
            only += f", and not shown to be unusable ({above_unusable(fit[0].unit)})"
        return Choice(fit[0], f"{only}." if len(students) > 1 else "")
    fastest = max(fit, key=lambda s: s.speedup)
    equal = [s for s in fit if s is fastest or _overlap(s.speedup_interval, fastest.speedup_interval)]
    if len(equal) == 1:
        return Choice(fastest, "It is the fastest of those that are shown to be no worse than the teacher.")
    for student in equal:
        if all(_fewer_errors(student, other) for other in equal if other is not student):
            return Choice(student, f"{_equally_fast(student, equal, named)}, and it makes fewer errors.")
    smallest = min(equal, key=lambda s: (s.row["size_mb"], -s.speedup))
    return Choice(smallest, f"{_equally_fast(smallest, equal, named)}, and none of them is smaller.")


def above_unusable(unit: str) -> str:
    """What counts as unusable, in words."""
    return f"{unit.upper()} above {UNUSABLE:g} %"


def gains(student: Student) -> bool:
    """Whether a student is shown to be faster than its teacher, or is smaller."""
    interval = student.speedup_interval
    return (interval is not None and interval[0] > 1) or student.row["size_mb"] < student.section["systems"][0][
        "size_mb"
    ]


def _equally_fast(student: Student, equal: Sequence[Student], named: Callable[[Student], str]) -> str:
    others = " and ".join(named(s) for s in equal if s is not student)
    return f"Its speed cannot be told from that of {others}"


def _overlap(a: Interval | None, b: Interval | None) -> bool:
    return a is None or b is None or (a[0] <= b[1] and b[0] <= a[1])


def _fewer_errors(a: Student, b: Student) -> bool:
    found = compare(a, b)
    return found is not None and found["ci"] is not None and found["ci"][1] < 0


def in_words(student: Student) -> str:
    """Speed, error rate and what they say, in a sentence without a subject."""
    return f"{speed_in_words(student)}; {errors_in_words(student)}"


def speed_in_words(student: Student) -> str:
    """How fast it is against its teacher; faster or slower only where the interval says so."""
    interval, ratio = student.speedup_interval, f"{times(student.speedup)} times as fast as the teacher"
    if interval is None:
        return f"{ratio} (too few clips for an interval)"
    bounds = f"({times(interval[0])} to {times(interval[1])})"
    if interval[0] <= 1 <= interval[1]:
        return f"{ratio} {bounds}, so neither faster nor slower can be told"
    return f"{ratio} {bounds}" + (", so slower" if interval[1] < 1 else "")


def times(ratio: float) -> str:
    """A ratio in as many digits as are of use; never 1 for what is not."""
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 1.05 else f"{ratio:.2f}"


def errors_in_words(student: Student) -> str:
    """The difference of error rates with its interval, and what it says."""
    said = (
        f"{rate_difference(student.difference, student.unit)}: {MEANINGS[student.finding].format(**_numbers(student))}"
    )
    if student.differing is None:
        return said
    clips = student.section["corpus"]["clips"]
    return f"{said} (it makes other numbers of errors on only {student.differing} of {clips} clips, too few for a bootstrap: the interval is Poisson's)"


MEANINGS: dict[Finding, str] = {
    "better": "better than the teacher",
    "no worse": "no worse than the teacher, within a margin of {margin} points",
    "worse within the margin": "worse than the teacher, but within the margin of {margin} points",
    "worse": "worse than the teacher",
    "cannot be told": "whether it is worse than the teacher by more than {margin} points cannot be told from {clips} clips",
}


def _numbers(student: Student) -> dict[str, str]:
    return {"margin": f"{MARGIN:g}", "clips": str(student.section["corpus"]["clips"])}


def rate_difference(difference: Difference, unit: str) -> str:
    """A difference of error rates and its interval; a bound that rounding would move across 0 or the margin has a third digit."""
    said = f"{unit.upper()} {_points(difference['points'])} points"
    if difference["ci"] is None:
        return f"{said} (fewer than {FEWEST_CLIPS} clips have no interval)"
    low, high = difference["ci"]
    return f"{said} ({_points(low)} to {_points(high)})"


def _points(value: float) -> str:
    rounded = round(value, 2)
    crossed = any((value > edge) != (rounded > edge) or (value < edge) != (rounded < edge) for edge in (0, MARGIN))
    return f"{value:+.3f}" if crossed else f"{value:+.2f}" if value else "0.00"
