"""The report's page: whatever the transcripts, names and manifests hold, whatever is missing, and for one run or several."""

import base64
import json
import re
import shutil
import sys

import numpy as np
import pytest

from export.measurement.page import Source, errors, is_page, read_sources, write_page
from export.measurement.page.errors import MOST_CLIPS, AudioBudget, errors_html, errors_of, worst_first
from export.measurement.page.plots import (
    LONGEST_LABEL,
    front,
    labels_of,
    latency_by_length,
    points_of,
    stage_shares,
    trade_offs,
)
from tests.browser import CHROMIUM, open_page
from tests.conftest import ROOT
from workbench.cli import app as cli
from workbench.core.errors import UserError
from workbench.core.html_page import html_page
from workbench.evaluation.scoring import clip_errors

REPORT = ROOT / "docs" / "results" / "quickstart" / "report.json"
EXAMPLE_RUN = ROOT / "docs" / "results" / "studies" / "example-run"
EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>$\\frac{"


@pytest.fixture
def report():
    """The published measurement, without the corpora that not every machine has."""
    found = json.loads(REPORT.read_text())
    found["other_corpora"] = []
    return found


@pytest.fixture
def run(report, tmp_path):
    """A measured run: its folder, with its training's log and weights."""
    folder = tmp_path / "measured"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report))
    for name in ("recipe.yaml", "weights.parquet"):
        shutil.copy(EXAMPLE_RUN / name, folder / name)
    return folder


def page_of(folders, tmp_path, **how):
    write_page(read_sources(folders), tmp_path / "page.html", **how)
    return (tmp_path / "page.html").read_text()


def command(monkeypatch, capsys, *words):
    """Status, output and errors of `workbench report`."""
    monkeypatch.setattr(sys, "argv", ["workbench", "report", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_a_run_is_shown_verdict_first_and_nothing_is_fetched(run, tmp_path, monkeypatch, capsys):
    status, said, _ = command(monkeypatch, capsys, run, "-o", tmp_path / "r.html")
    assert (status, said) == (0, f"{tmp_path / 'r.html'}\n")
    page = (tmp_path / "r.html").read_text()
    in_order = ["Ship fp32: 8.2 times as fast", "<h2>Results", "<h2>The trade-off", "<h2>Where the time goes", "<h2>Errors of quickstart fp32",
                "<h2>Sounds without speech", "learning curves</h3>", "how the weights moved</h3>", "<h2>How it was made"]  # fmt: skip
    assert sorted(in_order, key=page.index) == in_order
    assert not re.search(r"<script|<link|<iframe|@import|url\((?!#)|https?://", page)
    assert set(re.findall(r"""(?:src|href)=["']?([^"'>\s]{0,16})""", page)) <= {
        "data:audio/flac;",
        *re.findall('href="(#[^"]{0,15})', page),
    }
    assert "default-src 'none'" in page
    assert page.count("<svg") == 3 + 2 + 2 + 2  # trade-off, time, curves, weights
    assert len(page) < 2_000_000


def test_what_comes_from_outside_is_text(report, run, tmp_path):
    names = [system["name"] for system in report["systems"]]
    report["other_corpora"] = [{key: report[key] for key in ("corpus", "systems", "clips")}]
    report = json.loads(json.dumps(report))
    for part in (report, *report["other_corpora"]):
        part["corpus"] |= {"name": EVIL, "split": EVIL, "normalizers": {"en": EVIL}}
        for system in part["systems"]:
            system["name"] += EVIL
        part["clips"] = part["clips"][:3]
        for clip in part["clips"]:
            clip |= {"id": EVIL, "reference": f"one {EVIL}"}
            clip["hypotheses"] = {name + EVIL: f"two {EVIL}" for name in names}
            clip["stages_ms"] = {name + EVIL: clip["stages_ms"][name] for name in names}
    report["host"] |= {"cpu": EVIL, "cpu_flags": [EVIL], "versions": {EVIL: EVIL}}
    report["command"] = EVIL
    for found in (report["robustness"]["systems"], report["training"]):
        for name in list(found):
            found[name + EVIL] = found.pop(name)
    for curves in report["training"].values():
        curves["stage"] = [EVIL] * len(curves["stage"])
    (run / "report.json").write_text(json.dumps(report))
    page = page_of([run], tmp_path)
    assert "one &lt;img" in page
    assert "<img src=x" not in page
    assert "<script" not in page
    write_page([Source(EVIL, None, {EVIL: run})], tmp_path / "page.html")
    assert "<script" not in (tmp_path / "page.html").read_text()


def test_errors_are_worst_first_and_have_the_measured_audio(run, report, tmp_path):
    wrong = worst_first(errors_of(report, "quickstart fp32"))
    assert wrong[0].student - wrong[0].teacher == max(w.student - w.teacher for w in wrong)
    page = page_of([run], tmp_path, audio_clips=2)
    ids = re.findall(r'<div class="clip"><header><b>([^<]*)</b>', page)
    assert ids == [w.clip["id"] for w in wrong]
    players = re.findall(r'<b>([^<]*)</b><span>[^<]*</span><audio[^>]*base64,([^"]*)"', page)
    assert [name for name, _ in players] == ids[:2]
    assert all(base64.b64decode(data).startswith(b"fLaC") for _, data in players)
    assert "Only 2 have audio: the page holds at most 2 clips and 6 MB of audio." in page
    assert '<i class="substitution" title="substitution">this</i>' in page
    page = page_of([run], tmp_path, audio_clips=0)
    assert "<audio" not in page
    assert "Audio is left out: this page was made without recordings; `workbench report` puts them in" in page


def test_audio_of_other_clips_than_the_measured_ones_is_not_shown(run, report, tmp_path):
    for clip in report["clips"]:
        clip["seconds"] += 1.0
    (run / "report.json").write_text(json.dumps(report))
    page = page_of([run], tmp_path)
    assert "<audio" not in page
    assert "are others than the measured ones" in page


def errors_page(report, budget):
    student = report["systems"][1]["name"]
    return errors_html(Source("run", report, {}), report, student, {student: "fp32"}, budget)


def test_a_page_that_is_full_says_so_and_not_that_recordings_are_missing(report):
    page = errors_page(report, AudioBudget(20, 1, room=0))
    assert "Audio is left out: the page holds at most 20 clips and 6 MB of audio.<" in page
    assert "not on this machine" not in page


def test_missing_and_broken_recordings_are_not_taken_for_a_full_page(report, monkeypatch):
    found = Source("run", report, {}).clips(report)[0]
    absent, broken = (one.clip["id"] for one in worst_first(errors_of(report, report["systems"][1]["name"]))[:2])
    del found[absent]

    def wave(utterance):
        if utterance.id == broken:
            raise UserError("x.wav: <not> audio")
        return np.zeros(16000, np.float32)

    monkeypatch.setattr(Source, "clips", lambda *_: (found, ""))
    monkeypatch.setattr("workbench.corpus.Utterance.wave", wave)
    page = errors_page(report, AudioBudget(100, 1))
    assert "the page holds" not in page
    assert "have audio: of 1 the recording is not on this machine, or not the measured one; of 1 the recording cannot be read (x.wav: &lt;not&gt; audio)." in page  # fmt: skip


def test_what_a_corpus_without_errors_leaves_goes_to_the_next(report):
    budget = AudioBudget(20, 2)
    perfect = json.loads(json.dumps(report))
    for clip in perfect["clips"]:
        clip["hypotheses"] = dict.fromkeys(clip["hypotheses"], clip["reference"])
    assert "It has no errors to show" in errors_page(perfect, budget)
    assert budget.share() == 20


def test_errors_of_a_section_are_computed_once(report, monkeypatch):
    asked = []
    monkeypatch.setattr(errors, "clip_errors", lambda *clip: asked.append(clip) or clip_errors(*clip))
    errors_page(report, AudioBudget(0, 1))
    assert len(asked) == 2 * len(report["clips"])


def test_a_run_on_a_stream_and_without_validation_has_its_scores(run, tmp_path):
    scores = {
        "teacher": {"name": "whisper-base"},
        "corpus": {"name": "hf:stream", "clips": None, "seconds": None},
        "validation": None,
        "seconds": {"teacher_pass": 12.0, "training": 30.0},
        "steps": 70,
        "host": json.loads((run / "report.json").read_text())["host"],
    }
    (run / "scores.json").write_text(json.dumps(scores))
    page = page_of([run], tmp_path, audio_clips=0)
    assert "no scores.json" not in page
    assert "was trained from whisper-base on clips that were not counted (a stream) of hf:stream in 70 steps" in page
    (run / "report.json").unlink()
    assert "It was not validated in training." in page_of([run], tmp_path)


def test_a_page_is_known_as_one(run, tmp_path):
    page_of([run], tmp_path, audio_clips=0)
    assert is_page(tmp_path / "page.html")
    for text in ("", "<title>Report: mine</title>", html_page("Weights: run", "")):
        (tmp_path / "other.html").write_text(text)
        assert not is_page(tmp_path / "other.html")
    assert not is_page(tmp_path / "absent.html")


def test_a_page_holds_a_bounded_number_of_clips(run, report, tmp_path):
    for clip in report["clips"]:
        clip["hypotheses"] = dict.fromkeys(clip["hypotheses"], "la " * 500)
    (run / "report.json").write_text(json.dumps(report))
    page = page_of([run], tmp_path, audio_clips=3)
    assert page.count('<div class="clip">') == MOST_CLIPS
    assert f"The {MOST_CLIPS} worst of 119 clips" in page
    assert page.count("<audio") == 3
    assert "more)" in page  # words of a loop


def test_what_is_missing_is_left_out_with_a_line_that_says_why(report, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("training", "robustness"):
        del report[name]
    report["corpus"]["name"] = "not-here"
    (folder / "report.json").write_text(json.dumps(report))
    page = page_of([folder], tmp_path)
    missing = " ".join(re.findall('class="missing">(.*?)</p>', page))
    for why in ("no metrics.jsonl", "no weights.parquet", "no scores.json", "--no-robustness", "Audio is left out", "other corpora: not measured",
                "did not record it"):  # fmt: skip
        assert why in missing, why
    (folder / "weights.parquet").write_text("not Parquet")
    shutil.copy(EXAMPLE_RUN / "recipe.yaml", folder)
    (folder / "metrics.jsonl").write_text("{}\n{")
    page = page_of([folder], tmp_path)
    assert "not the weights of a run" in page
    assert "not the log of a run" in page


def test_a_run_that_was_not_measured_says_so(run, tmp_path):
    (run / "report.json").unlink()
    page = page_of([run], tmp_path)
    assert "Not measured, so nothing can be said of it yet." in page
    assert "how the weights moved" in page
    assert "Ship" not in page


def test_several_runs_have_one_table_and_a_verdict_each(run, report, tmp_path):
    second = tmp_path / "second"
    second.mkdir()
    report["systems"][2]["wer_difference"] = {"points": -1.0, "ci": [-2.0, 0.1]}
    (second / "report.json").write_text(json.dumps(report))
    page = page_of([run, second], tmp_path, audio_clips=0)
    verdicts = re.findall('class="verdict [a-z]*"><p class="first">(.*?)</p>', page)
    assert [v.split(":")[0] for v in verdicts] == ["Ship second int8", "Ship fp32", "Ship int8"]
    table = page[page.index("<h2>Results") : page.index("</table>")]
    assert len(re.findall("<td>(?:measured|second): ", table)) == 6
    assert len(re.findall("<tr class=shipped>", table)) == 2
    assert page.count('aria-label="WER against median latency, ms"') == 1  # drawn together
    report["host"]["cpu"] = "another"
    (second / "report.json").write_text(json.dumps(report))
    page = page_of([run, second], tmp_path, audio_clips=0)
    assert "which of them is best cannot be told: they were measured on different machines" in page
    assert page.count('aria-label="WER against median latency, ms"') == 2  # drawn apart


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    twin = tmp_path / "other" / "measured"
    shutil.copytree(run, twin)
    assert [source.name for source in read_sources([run, twin])] == [f"{tmp_path.name}/measured", "other/measured"]
    with pytest.raises(UserError, match="is named twice"):
        read_sources([run, run])


def test_the_front_is_what_no_other_beats():
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.5, 2.5), (4.0, 1.0)]
    assert front(points) == [1, 2, 0]


def test_long_names_keep_what_tells_them_apart(report):
    long = "whisper-small-to-tiny: whisper-small-to-tiny"
    first, second = labels_of([f"{long} int8", f"{long} fp32"])
    assert (first[-5:], second[-5:]) == (" int8", " fp32")
    in_the_middle = labels_of([f"studies/{'a' * 20}{seed}: {'b' * 20} int8" for seed in (1, 2)])
    assert [label[-4:] for label in in_the_middle] == [" (1)", " (2)"]
    assert max(map(len, [first, second, *in_the_middle])) <= LONGEST_LABEL
    assert labels_of(["int8", "fp32"]) == ["int8", "fp32"]
    bars = stage_shares(report, lambda _: "the same").axes[0]
    assert len({patch.get_y() for patch in bars.patches}) == len(report["systems"])  # not over each other


def test_long_names_do_not_stick_out_of_the_plots(report):
    def named(name):
        return f"whisper-small-to-tiny-and-more: {name}"

    for figure in (trade_offs(points_of(report, named), "wer")[0][0], latency_by_length(report, named)):
        figure.draw_without_rendering()
        legend = figure.legends[0].get_window_extent()
        assert legend.x0 >= 0
        assert legend.x1 <= figure.bbox.x1


def test_names_with_an_underscore_stand_in_the_legends(report):
    for figure in (
        trade_offs(points_of(report, lambda name: f"_{name}"), "wer")[0][0],
        latency_by_length(report, lambda name: f"_{name}"),
    ):
        said = {text.get_text().strip() for text in figure.legends[0].get_texts()}
        assert {f"_{system['name']}" for system in report["systems"]} <= said


def cut(report, *path):
    for name in path[:-1]:
        report = report[name]
    del report[path[-1]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(schema=2), "field 'schema' is 2, expected 3"),
        (lambda r: cut(r, "host"), "'host' is missing"),
        (lambda r: cut(r, "systems", 1, "wer_difference"), "field 'wer_difference' is missing"),
        (lambda r: r["systems"][1].update(wer="low"), "systems[1].wer' is 'low'"),
        (lambda r: r["systems"][1]["wer_difference"].update(ci=[1.0]), "ci' is an array of 1"),
        (lambda r: r["systems"][0].update(kind="student"), "does not begin with the only teacher"),
        (lambda r: r["systems"].pop(), "does not hold every system"),
        (lambda r: r["systems"][1].update(name=r["systems"][0]["name"]), "does not hold each system once"),
        (lambda r: cut(r, "clips", 5, "hypotheses", "quickstart int8"), "field 'hypotheses' does not hold every system"),
        (lambda r: r.update(clips=[]), "clips' is an array of 0"),
        (lambda r: cut(r, "robustness", "systems", "quickstart int8", "noise"), "does not have figures for every kind of sound"),
        (lambda r: r["systems"][1]["latency_ms"].update(p50=float("nan")), "p50' is nan"),
        (lambda r: r["corpus"].update(clips=True), "clips' is True"),
    ],
)  # fmt: skip
def test_a_damaged_report_is_one_line_and_nothing_is_written(report, run, tmp_path, monkeypatch, capsys, change, said):
    change(report)
    (run / "report.json").write_text(json.dumps(report))
    status, _, errors = command(monkeypatch, capsys, run, "-o", tmp_path / "r.html")
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert said in errors
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 3}'])
def test_a_file_that_is_no_report_is_one_line(run, tmp_path, monkeypatch, capsys, text):
    (run / "report.json").write_text(text)
    status, _, errors = command(monkeypatch, capsys, run, "-o", tmp_path / "r.html")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert str(run / "report.json") in errors


def test_a_folder_with_neither_run_nor_report_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    status, _, errors = command(monkeypatch, capsys, tmp_path / "empty", "-o", tmp_path / "r.html")
    assert (status, errors) == (2, f"error: {tmp_path / 'empty'}: holds neither report.json (of `workbench measure`) nor a run (of `workbench distill`)\n")  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
@pytest.mark.slow
@pytest.mark.parametrize(("width", "columns"), [(1280, 3), (390, 1)])
@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(13, 17, 23)")])
def test_the_page_in_a_browser(run, tmp_path, width, columns, scheme, paper):
    page_of([run], tmp_path)
    with open_page((tmp_path / "page.html").as_uri(), width) as (browser, outside):
        browser.emulate_media(color_scheme=scheme)
        assert browser.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        first, second, third = (browser.locator(".plots").first.locator("svg").nth(i).bounding_box() for i in range(3))
        assert len({round(box["y"]) for box in (first, second, third)}) == {3: 1, 1: 3}[columns]
        # ticks are readable: at least 8 pixels high
        assert browser.locator(".plots text").first.bounding_box()["height"] >= 8
        ink = browser.evaluate("getComputedStyle(document.querySelector('.plots text')).fill")
        assert (min(map(int, re.findall(r"\d+", ink))) > 120) == (scheme == "dark")
        verdict = browser.locator(".verdict .first")
        assert verdict.bounding_box()["y"] < 200
        assert verdict.inner_text().startswith("Ship fp32")
        seconds = browser.evaluate(
            "new Promise(done => { const a = document.querySelector('audio'); a.onloadedmetadata = () => done(a.duration); a.onerror = () => done(0); a.load() })"
        )
        assert 0.3 < seconds < 30
        assert not outside
        shot = tmp_path / f"{scheme}-{width}.png"
        browser.screenshot(path=shot, full_page=True)
        assert shot.stat().st_size > 30_000
        browser.emulate_media(media="print")
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not browser.locator("audio").first.is_visible()
