"""What a measurement says in words: which student to ship, and why. Every claim follows from a 95 % interval, never from a point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from export.edge.bundle.content import Difference
from export.measurement.content import Section, SystemRow
from workbench.evaluation.scoring import FEWEST_CLIPS, RESAMPLES, paired_difference

UNUSABLE = (
    50.0  # percent of errors; a system whose whole interval lies above it recognises nothing, whatever its teacher does
)
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
        """Whether more than half of what it writes is shown to be wrong."""
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
    for row in section["systems"][1:]:
        difference = row["cer_difference"] if section["corpus"]["headline"] == "cer" else row["wer_difference"]
        speed = speedup_interval(section, row["name"], teacher["name"])
        out.append(Student(run, row["name"], section, row, difference, speed))
    return out


def total_ms(section: Section, name: str) -> npt.NDArray[np.float64]:
    """A system's latency on each clip, from file to text. [clips], ms"""
    return np.array([sum(clip["stages_ms"][name].values()) for clip in section["clips"]])


def median_interval(values: npt.NDArray[np.float64]) -> Interval | None:
    """95 % bootstrap interval of a median over clips; None with too few."""
    return _percentiles(np.median(values[_drawn(len(values))], 1)) if len(values) >= FEWEST_CLIPS else None


def speedup_interval(section: Section, name: str, teacher: str) -> Interval | None:
    """95 % bootstrap interval of the ratio of median latencies, teacher's to student's, over the same clips; None with too few."""
    ours, theirs = total_ms(section, name), total_ms(section, teacher)
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
    clips, others = a.section["clips"], b.section["clips"]
    ours, theirs = [c["hypotheses"][a.name] for c in clips], [c["hypotheses"][b.name] for c in others]
    found = paired_difference(
        [c["reference"] for c in clips], ours, theirs, [c["language"] for c in clips], unit=a.unit
    )
    return {"points": found["points"], "ci": found["ci"]}


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
        if any(s.finding in ACCEPTABLE for s in students if s is not fit[0]):
            only += ", faster or smaller than it, and right more often than wrong"
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
    return (
        f"{rate_difference(student.difference, student.unit)}: {MEANINGS[student.finding].format(**_numbers(student))}"
    )


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
