"""Verdicts of whole runs: what to ship, what else was measured, what it does on other speech; and of several runs together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export.measurement.content import Report, SystemRow
from export.measurement.verdict import (
    ACCEPTABLE,
    Student,
    above_unusable,
    choose,
    compare,
    finding,
    in_words,
    rate_difference,
    same_clips,
    students_of,
)


@dataclass(frozen=True)
class Conclusion:
    """A verdict in words."""

    kind: str  # `ship`, `unsure` (undecided) or `none` (all are worse)
    first: str  # what to do
    because: list[str]  # one line each
    student: Student | None  # the one to ship


def conclude(run: str, report: Report) -> Conclusion:
    """The verdict of one run; its first corpus decides, further ones qualify it."""
    students = students_of(run, report)
    if not students:
        return Conclusion("unsure", "Nothing to ship: the report holds no student.", [], None)
    choice = choose(students, short)
    lines: list[str] = []
    if choice.student is not None:
        kind, first = "ship", f"Ship {short(choice.student)}: {in_words(choice.student)}."
        lines += [f"Judged on {_clips(report)}.{' ' if choice.reason else ''}{choice.reason}"]
    else:
        kind, first = _nothing_to_ship(students, report)
    lines += [f"{short(s)}: {in_words(s)}." for s in students if s is not choice.student]
    shown = choice.student or max(students, key=lambda s: s.speedup)
    lines += _elsewhere(shown, report) + _loops(shown, report)
    if kind == "unsure":
        lines.append("More clips narrow an interval: measure on a larger test set before deciding.")
    return Conclusion(kind, first, lines, choice.student)


def _nothing_to_ship(students: Sequence[Student], report: Report) -> tuple[str, str]:
    """Kind and first sentence where no student can be shipped: `none` only if more clips would not help any of them."""
    useless = above_unusable(students[0].unit)
    if all(s.unusable for s in students):
        rates = ", ".join(f"{short(s)} {s.row['cer'] if s.unit == 'cer' else s.row['wer']:.0f} %" for s in students)
        return "none", f"Ship none of these: each is shown to be unusable, with a {useless} ({rates})."
    no_gain = any(s.finding in ACCEPTABLE and not s.unusable for s in students)
    if any(s.finding == "cannot be told" and not s.unusable for s in students):
        if no_gain:
            why = "those that are no worse than the teacher are neither shown to be faster nor smaller; of others it cannot be told whether they are worse"
            return "unsure", f"Ship none of these yet: {why}."
        besides = f" but the unusable ({useless})" if any(s.finding in ACCEPTABLE for s in students) else ""
        return (
            "unsure",
            f"Ship none of these yet: none{besides} is shown to be no worse than the teacher on {_clips(report)}.",
        )
    if no_gain:
        return (
            "none",
            "Ship none of these: those that are no worse than the teacher are neither shown to be faster nor smaller.",
        )
    unusable = f" or unusable ({useless})" if any(s.unusable for s in students) else ""
    return "none", f"Ship none of these in the teacher's place: each is worse than the teacher{unusable}."


def short(student: Student) -> str:
    """The precision where a run has one student, else the system's name."""
    precisions = [row["precision"] for row in student.section["systems"][1:]]
    return student.row["precision"] if len(set(precisions)) == len(precisions) else student.name


def _clips(report: Report) -> str:
    return f"{report['corpus']['clips']} clips of {report['corpus']['name']}"


def _elsewhere(student: Student, report: Report) -> list[str]:
    """What the student does on the report's further corpora."""
    trained = {
        True: "which it was trained on",
        False: "which it was not trained on",
        None: "on which its training is not recorded",
    }
    out = []
    for section in report["other_corpora"]:
        other = next(s for s in students_of(student.run, section) if s.name == student.name)
        corpus = section["corpus"]
        out.append(
            f"{short(student)} on {corpus['name']}, {trained[corpus['trained_on']]} ({corpus['clips']} clips): {in_words(other)}."
        )
    return out


def _loops(student: Student, report: Report) -> list[str]:
    ours, theirs = student.row["loops"], report["systems"][0]["loops"]
    if ours <= theirs:
        return []
    return [
        f"{short(student)} repeats itself without end on {ours} of {report['corpus']['clips']} clips, the teacher on {theirs}."
    ]


def conclude_all(conclusions: Sequence[Conclusion], reports: Sequence[Report]) -> Conclusion:
    """The verdict of several runs together: which of those that can be shipped."""
    fit = [(c.student, r) for c, r in zip(conclusions, reports, strict=True) if c.student is not None]
    if not fit:
        kind = "none" if conclusions and all(c.kind == "none" for c in conclusions) else "unsure"
        return Conclusion(kind, "No run has a student to ship; its own verdict says why.", [], None)
    if len(fit) == 1:
        student = fit[0][0]
        first = f"Ship {_of_run(student)}: {in_words(student)}."
        return Conclusion("ship", first, ["No other run has a student to ship."], student)
    if why := incomparable([report for _, report in fit]):
        names = ", ".join(_of_run(student) for student, _ in fit)
        first = f"Each of {names} can be shipped by its own measurement; which of them is best cannot be told: {why}."
        return Conclusion(
            "unsure", first, ["To compare them, measure all their bundles in one `workbench measure`."], None
        )
    candidates = [student for student, _ in fit]
    choice = choose(candidates, _of_run)
    chosen = choice.student or candidates[0]  # each of them is fit, so there is a choice
    lines = [choice.reason, *(_against(chosen, other) for other in candidates if other is not chosen)]
    return Conclusion("ship", f"Ship {_of_run(chosen)}: {in_words(chosen)}.", lines, chosen)


def incomparable(reports: Sequence[Report]) -> str:
    """Why runs cannot be compared with each other; empty where they can."""
    first = reports[0]
    for other in reports[1:]:
        teachers = first["systems"][0], other["systems"][0]
        if teachers[0]["name"] != teachers[1]["name"] or _graphs(teachers[0]) != _graphs(teachers[1]):
            return "their teachers differ"
        if not same_clips(first, other):
            return "they were measured on different clips"
        if (other["host"]["cpu"], other["threads"]) != (first["host"]["cpu"], first["threads"]):
            return "they were measured on different machines or with different numbers of threads"
        if _wrote(first) != _wrote(other):
            return "their teachers' transcripts or scores differ"
    return ""


def _graphs(row: SystemRow) -> list[str]:
    """Checksums of a system's graphs: two teachers may have one name."""
    return sorted(row.get("graphs_sha256", {}).values())


def _wrote(report: Report) -> tuple[list[str], float, float]:
    """What the teacher wrote, and its error rates."""
    teacher = report["systems"][0]
    return [clip["hypotheses"][teacher["name"]] for clip in report["clips"]], teacher["wer"], teacher["cer"]


def _of_run(student: Student) -> str:
    return f"{student.run} {short(student)}"


def _against(chosen: Student, other: Student) -> str:
    found = compare(chosen, other)
    said = f"{_of_run(other)}: {in_words(other)}."
    if found is None:
        return said
    meaning = {"better": "fewer errors", "worse": "more errors"}.get(
        finding(found["ci"], margin=0.0), "no difference can be told"
    )
    return f"{said} {_of_run(chosen)} against it: {rate_difference(found, chosen.unit)}: {meaning}."
