"""Verdicts: what an interval says, in words; which student is shipped, and why."""

import json
import re
from dataclasses import replace

import pytest

from export.measurement.conclusion import conclude, conclude_all, incomparable
from export.measurement.verdict import compare, finding, rate_difference, speedup_interval, students_of, times
from tests.conftest import ROOT
from workbench.evaluation.scoring import clip_errors, paired_difference

REPORT = ROOT / "docs" / "results" / "quickstart" / "report.json"


@pytest.fixture
def report():
    return json.loads(REPORT.read_text())


def alone(report, ci, points=None, speed=1.0):
    """The report with one student and no further corpora, its interval given, its times multiplied."""
    report["systems"] = report["systems"][:2]
    student = report["systems"][1]
    student["wer_difference"] = (
        {"points": sum(ci) / 2 if points is None else points, "ci": ci} if ci else {"points": 1.0, "ci": None}
    )
    for clip in report["clips"]:
        clip["stages_ms"][student["name"]] = {k: v * speed for k, v in clip["stages_ms"][student["name"]].items()}
    report["other_corpora"] = []
    return report


@pytest.mark.parametrize(
    ("ci", "found", "kind", "said"),
    [
        ([-2.0, -0.1], "better", "ship", "WER -1.05 points (-2.00 to -0.10): better than the teacher."),
        ([-2.0, 0.5], "no worse", "ship", "no worse than the teacher, within a margin of 0.5 points."),
        ([-2.0, 0.0], "no worse", "ship", "(-2.00 to 0.00): no worse than the teacher, within a margin of 0.5 points."),
        ([0.0, 0.0], "no worse", "ship", "WER 0.00 points (0.00 to 0.00): no worse than the teacher"),
        ([0.1, 0.5], "worse within the margin", "ship", "worse than the teacher, but within the margin of 0.5 points."),
        ([-2.0, 0.51], "cannot be told", "unsure", "whether it is worse than the teacher by more than 0.5 points cannot be told from 119 clips."),
        ([-0.1, 9.0], "cannot be told", "unsure", "cannot be told from 119 clips."),
        ([0.1, 0.6], "worse", "none", "(+0.10 to +0.60): worse than the teacher."),
        ([0.6, 9.0], "worse", "none", "worse than the teacher."),
        (None, "cannot be told", "unsure", "WER +1.00 points (fewer than 20 clips have no interval): whether it is worse"),
    ],
)  # fmt: skip
def test_each_kind_of_interval_has_its_words(report, ci, found, kind, said):
    assert finding(ci) == found
    conclusion = conclude("run", alone(report, ci))
    text = " ".join([conclusion.first, *conclusion.because])
    assert conclusion.kind == kind
    assert said in text
    assert (conclusion.student is not None) == conclusion.first.startswith("Ship fp32: ")
    others = [
        "better than the teacher",
        "no worse than the teacher, within",
        "but within the margin",
        "cannot be told",
        ": worse than the teacher.",
    ]
    assert sum(words in text for words in others) == 1, text


def test_bounds_are_not_mistaken_for_each_other():
    for low, high in [(-2.0, -0.1), (-2.0, 0.4), (0.1, 0.6), (0.6, 9.0), (-0.1, 9.0)]:
        # better and worse turn into each other where both bounds change their sign and their place; swapped alone they must not
        assert finding([low, high]) != finding([-high, -low]) or finding([low, high]) == "cannot be told"
        assert rate_difference({"points": 0.3, "ci": [low, high]}, "wer").index(f"{low:+.2f}") < rate_difference(
            {"points": 0.3, "ci": [low, high]}, "wer"
        ).index(f"{high:+.2f}")


def test_rounding_never_moves_a_bound_across_the_margin_or_zero():
    assert "+0.503)" in rate_difference({"points": -1.0, "ci": [-2.0, 0.503]}, "wer")
    assert "-0.003)" in rate_difference({"points": -1.0, "ci": [-2.0, -0.003]}, "wer")
    assert "+0.51)" in rate_difference({"points": -1.0, "ci": [-2.0, 0.511]}, "wer")
    assert [times(x) for x in (0.97, 1.02, 8.25, 14.65, 140.2)] == ["0.97", "1.02", "8.2", "14.7", "140"]


def test_the_published_run_claims_no_more_than_its_intervals(report):
    conclusion = conclude("quickstart", report)
    assert conclusion.first.startswith("Ship fp32: 8.2 times as fast as the teacher (")
    assert (
        "WER -1.40 points (-2.88 to +0.15): no worse than the teacher, within a margin of 0.5 points."
        in conclusion.first
    )
    (int8,) = [line for line in conclusion.because if line.startswith("int8: ")]
    assert "(-2.89 to +0.51): whether it is worse than the teacher by more than 0.5 points cannot be told" in int8
    strangers = [line for line in conclusion.because if "which it was not trained on" in line]
    assert len(strangers) == 2
    assert all("cannot be told" in line for line in strangers)


def test_speed_is_claimed_only_where_its_interval_says_so(report):
    as_fast = alone(report, [-1.0, 0.0], speed=report["systems"][1]["speedup"])
    low, high = speedup_interval(as_fast, as_fast["systems"][1]["name"], as_fast["systems"][0]["name"])
    assert low < 1 < high
    as_fast["systems"][1] |= {"speedup": 1.0, "size_mb": 50.0}
    assert "so neither faster nor slower can be told" in conclude("run", as_fast).first
    as_fast["systems"][1]["size_mb"] = as_fast["systems"][0]["size_mb"]
    conclusion = conclude("run", as_fast)
    assert conclusion.kind == "none"
    assert "neither shown to be faster nor smaller" in conclusion.first


def test_the_interval_of_a_speed_up_is_the_ratio_of_medians_over_the_same_clips(report):
    teacher, student = (s["name"] for s in report["systems"][:2])
    for clip in report["clips"]:  # exactly four times as fast on every clip, however long
        clip["stages_ms"][student] = {k: v / 4 for k, v in clip["stages_ms"][teacher].items()}
    assert speedup_interval(report, student, teacher) == pytest.approx((4.0, 4.0))
    report["clips"] = report["clips"][:19]
    assert speedup_interval(report, student, teacher) is None


def test_the_fastest_that_is_no_worse_is_shipped(report):
    report["systems"][2]["wer_difference"] = {"points": -1.0, "ci": [-2.0, 0.1]}
    conclusion = conclude("run", report)
    assert conclusion.student.row["precision"] == "int8"
    assert "It is the fastest of those that are shown to be no worse than the teacher." in conclusion.because[0]


def test_of_equally_fast_ones_the_better_or_else_the_smaller_is_shipped(report):
    first, second = (s["name"] for s in report["systems"][1:])
    report["systems"][2] |= {
        "wer_difference": {"points": -1.0, "ci": [-2.0, 0.1]},
        "speedup": report["systems"][1]["speedup"],
    }
    for clip in report["clips"]:
        clip["stages_ms"][second] = clip["stages_ms"][first]
    conclusion = conclude("run", report)
    assert conclusion.student.row["precision"] == "int8"
    assert "Its speed cannot be told from that of fp32, and none of them is smaller." in conclusion.because[0]
    for clip in report["clips"]:
        clip["hypotheses"] |= {first: clip["reference"], second: "nonsense"}
    conclusion = conclude("run", report)
    assert conclusion.student.row["precision"] == "fp32"
    assert "and it makes fewer errors." in conclusion.because[0]


def test_a_language_without_spaces_is_judged_by_characters(report):
    report = alone(report, [1.0, 2.0])
    report["corpus"]["headline"] = "cer"
    report["systems"][1]["cer_difference"] = {"points": -1.0, "ci": [-2.0, -0.5]}
    assert "CER -1.00 points (-2.00 to -0.50): better than the teacher" in conclude("run", report).first


def test_a_student_that_recognises_nothing_is_not_shipped_however_bad_its_teacher_is(report):
    nonsense = alone(report, [-90.0, -80.0])
    nonsense["systems"][1] |= {"wer": 120.0, "wer_ci": [110.0, 130.0]}
    conclusion = conclude("run", nonsense)
    assert conclusion.kind == "none"
    assert conclusion.first == "Ship none of these: each is shown to be unusable, with a WER above 50 % (fp32 120 %)."
    nonsense["systems"][1] |= {"wer": 51.0, "wer_ci": [49.0, 53.0]}  # not shown to be as bad as that
    assert conclude("run", nonsense).kind == "ship"


def test_no_student_is_said_to_be_right_more_often_than_wrong_where_that_is_not_shown(report):
    usable, useless = report["systems"][1:]
    usable |= {"wer": 55.0, "wer_ci": [48.0, 62.0], "wer_difference": {"points": -1.0, "ci": [-2.0, 0.1]}}
    useless |= {"wer": 80.0, "wer_ci": [75.0, 85.0], "wer_difference": {"points": -1.0, "ci": [-2.0, 0.1]}}
    conclusion = conclude("run", report)
    assert conclusion.student.row["precision"] == "fp32"
    assert conclusion.because[0].endswith(
        "It is the only one that is shown to be no worse than the teacher, and not shown to be unusable (WER above 50 %)."
    )
    usable["wer_difference"] = {"points": -1.0, "ci": [-2.0, 0.6]}
    assert conclude("run", report).first == (
        "Ship none of these yet: none but the unusable (WER above 50 %) is shown to be no worse than the teacher on 119 clips of prompts-en."
    )
    usable["wer_difference"] = {"points": 2.0, "ci": [1.0, 3.0]}
    conclusion = conclude("run", report)
    assert (conclusion.kind, conclusion.first) == (
        "none",
        "Ship none of these in the teacher's place: each is worse than the teacher or unusable (WER above 50 %).",
    )


def few(report, clips, more=(), fewer=()):
    """The report's first clips, on which one student writes what its teacher does, but for some words too many or a worse teacher."""
    report["systems"], report["other_corpora"] = report["systems"][:2], []
    report["clips"] = report["clips"][:clips]
    report["corpus"]["clips"] = clips
    teacher, student = (system["name"] for system in report["systems"])
    for i, clip in enumerate(report["clips"]):
        clip["hypotheses"] = dict.fromkeys((teacher, student), clip["reference"])
        if i in more:
            clip["hypotheses"][student] += " banana" * more[i]
        if i in fewer:
            clip["hypotheses"][teacher] += " banana"
    columns = [[c["reference"] for c in report["clips"]], *([c["hypotheses"][n] for c in report["clips"]] for n in (student, teacher))]  # fmt: skip
    report["systems"][1]["wer_difference"] = paired_difference(*columns)
    words = sum(clip_errors(c["reference"], c["reference"], "en").length for c in report["clips"])
    (found,) = students_of("run", report)
    return found, words


def test_equal_transcripts_of_few_words_do_not_show_that_a_student_is_no_worse(report):
    found, words = few(report, 20)
    assert words == 145
    assert found.row["wer_difference"]["ci"] == [0.0, 0.0]  # the bootstrap's
    assert found.difference["ci"] == pytest.approx([-369 / words, 369 / words], abs=0.002)
    conclusion = conclude("run", report)
    assert (conclusion.kind, conclusion.student) == ("unsure", None)
    said = " ".join(conclusion.because)
    assert "WER 0.00 points (-2.54 to +2.54): whether it is worse than the teacher by more than 0.5 points cannot be told from 20 clips" in said  # fmt: skip
    assert "other numbers of errors on only 0 of 20 clips, too few for a bootstrap" in said


def test_equal_transcripts_of_many_words_do(report):
    report["clips"] = [clip | {"id": f"{clip['id']}-{i}"} for i in range(2) for clip in report["clips"]]
    found, words = few(report, 238)
    assert 369 / words < 0.5
    assert found.finding == "no worse"
    assert conclude("run", report).kind == "ship"


def test_few_clips_that_differ_show_no_direction(report):
    # 4 of 119 clips, all in the student's favour: the bootstrap's interval ends below 0, but of 16 such results one is chance
    found, _ = few(report, 119, fewer=range(4))
    assert found.row["wer_difference"]["ci"][1] < 0
    assert found.finding == "cannot be told"
    found, words = few(report, 119, more={0: 30})  # one clip that loops weighs as much as it may again
    assert found.difference["ci"][1] == pytest.approx(100 * 5.57 * 30 / words, rel=0.01)
    found, _ = few(report, 119, fewer=range(6))
    assert (found.differing, found.finding) == (None, "better")


def test_two_students_that_differ_on_few_clips_cannot_be_told_apart(report):
    few(report, 119, fewer=range(4))
    teacher, student = students_of("a", report)[0], students_of("b", report)[0]
    teacher = replace(teacher, name=report["systems"][0]["name"])
    low, high = compare(student, teacher)["ci"]
    assert low < 0 < high


def test_what_cannot_be_told_of_any_student_is_unsure(report):
    first, second = report["systems"][1:]
    first |= {"wer_difference": {"points": 0.0, "ci": [-0.2, 0.2]}, "size_mb": report["systems"][0]["size_mb"]}
    for clip in report["clips"]:  # as fast as the teacher
        clip["stages_ms"][first["name"]] = clip["stages_ms"][report["systems"][0]["name"]]
    assert second["wer_difference"]["ci"][1] > 0.5  # 14.7 times as fast, undecided
    conclusion = conclude("run", report)
    assert conclusion.kind == "unsure"
    assert "of others it cannot be told whether they are worse" in conclusion.first
    assert any(line.startswith("More clips narrow an interval") for line in conclusion.because)
    assert conclude_all([conclusion], [report]).kind == "unsure"
    second["wer_difference"] = {"points": 2.0, "ci": [1.0, 3.0]}
    assert conclude("run", report).kind == "none"


def test_more_loops_than_the_teacher_are_said(report):
    report["systems"][1]["loops"] = 3
    assert "fp32 repeats itself without end on 3 of 119 clips, the teacher on 0." in conclude("run", report).because


def both(report, second):
    return [conclude("a", report), conclude("b", second)], [report, second]


def test_runs_on_the_same_clips_are_compared(report):
    second = json.loads(REPORT.read_text())
    second["systems"][2]["wer_difference"] = {"points": -1.0, "ci": [-2.0, 0.1]}
    together = conclude_all(*both(report, second))
    assert together.first.startswith("Ship b int8: 14.7 times")
    assert any(
        re.search(r"^a fp32: .* b int8 against it: WER \+0.14 points \(.*\): no difference can be told.", line)
        for line in together.because
    )


def rename(report, old, new):
    for part in (report, *report["other_corpora"]):
        part["systems"][0]["name"] = new
        for clip in part["clips"]:
            for kind in ("hypotheses", "stages_ms"):
                clip[kind][new] = clip[kind].pop(old)


def test_runs_that_cannot_be_compared_are_not(report):
    for change, why in [
        (lambda r: rename(r, r["systems"][0]["name"], "other (teacher)"), "their teachers differ"),
        (
            lambda r: r["systems"][0]["graphs_sha256"].update({"onnx/encoder_model.onnx": "0" * 64}),
            "their teachers differ",
        ),
        (
            lambda r: r["clips"][0]["hypotheses"].update({r["systems"][0]["name"]: "Another."}),
            "their teachers' transcripts or scores differ",
        ),
        (lambda r: r["systems"][0].update(wer=9.0), "their teachers' transcripts or scores differ"),
        (lambda r: r["clips"][0].update(reference="Another."), "different clips"),
        (lambda r: r["host"].update(cpu="another"), "different machines"),
        (lambda r: r.update(threads=7), "different machines or with different numbers of threads"),
    ]:
        second = json.loads(REPORT.read_text())
        change(second)
        assert why in incomparable([report, second])
        together = conclude_all(*both(report, second))
        assert together.student is None
        assert why in together.first


def test_no_run_to_ship(report):
    worse = alone(json.loads(REPORT.read_text()), [1.0, 2.0])
    assert conclude_all(*both(worse, worse)).kind == "none"
    one = conclude_all(*both(report, worse))
    assert one.first.startswith("Ship a fp32")
    assert one.because == ["No other run has a student to ship."]


def test_every_student_of_a_section_is_judged(report):
    assert [s.name for s in students_of("run", report)] == [s["name"] for s in report["systems"][1:]]
