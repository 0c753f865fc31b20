"""The Open ASR Leaderboard's protocol, on local folders that are laid out as its datasets are; the hub itself is not asked."""

import json

import jiwer
import pytest
from typer.testing import CliRunner

from export.measurement.leaderboard import DIFFERS, SETS, normalized, preset_corpora, scored_by_leaderboard
from export.measurement.page.source import read_report
from tests.hub_copies import clip
from workbench import api
from workbench.cli.app import app
from workbench.core.errors import UserError

TEXTS = ["Mr. Smith's 2 colours, uh...", "HMM", "It's twenty one percent"]


def section(corpus, clips):
    return {
        "corpus": {"name": corpus},
        "systems": [{"name": "student int8"}],
        "clips": [
            {
                "reference": reference, "hypotheses": {"student int8": hypothesis}, "seconds": seconds,
                "stages_ms": {"student int8": {"decode": 1000.0, "encoder": ms / 2, "rest": ms / 2}},
            }
            for reference, hypothesis, seconds, ms in clips
        ],
    }  # fmt: skip


def test_scores_are_the_plain_mean_of_sets_and_time_counts_from_wave_to_text():
    right, half = ("a good day", "A good day.", 2.0, 100.0), ("one two three four", "1 3 five", 6.0, 300.0)
    first, *others = [section(corpus, [right, right]) for corpus in SETS.values()]
    others[-1] = section(SETS["Voxpopuli"], [half, ("uh, hmm", "something", 8.0, 900.0)])
    report = {**first, "other_corpora": others, "host": {"cpu": "A CPU"}, "threads": 2}
    found = scored_by_leaderboard(report, 2)
    row = found["systems"]["student int8"]
    # "one two three four" is "1234" to the normalizer, and "1 3 five" is "1 35": 2 errors, of 1 word
    assert normalized("one two three four").split() == ["1234"]
    wrong = round(100 * jiwer.wer([normalized(half[0])], [normalized(half[1])]), 2)
    assert row["wer"]["Voxpopuli"] == wrong > 0
    assert row["wer"]["AMI"] == 0.0
    assert row["average_wer"] == round(wrong / 8, 2)
    assert found["clips"] == {**dict.fromkeys(SETS, 2), "Voxpopuli": 1}
    assert found["not_scored"]["Voxpopuli"] == 1
    assert row["rtfx"] == round(
        (14 * 2.0 + 6.0) / (14 * 0.1 + 0.3), 2
    )  # without the decoding of files, and the clip that is not scored
    assert found["differs"][0] == "Only the first 2 clips of each set were measured (--clips)."
    assert found["differs"][1].startswith("Measured on A CPU with 2 threads, one clip at a time")


def test_the_normalizer_is_whispers_own_without_the_workbenchs_rules():
    assert normalized("Mr. Smith’s 2 colours, uh...") == "mister smith s 2 colors ."  # a period stays, and counts
    assert normalized("It's twenty-one percent") == "it is 21%"
    assert normalized("hmm, uh") == ""


@pytest.fixture
def leaderboard(copies):
    """All eight sets with three clips each."""
    configs = {"ami": ["test"], "earnings22": ["test"], "gigaspeech": ["test"], "librispeech": ["test.clean", "test.other"],
               "spgispeech": ["test"], "voxpopuli": ["test"]}  # fmt: skip
    rows = [clip(0.5, dataset="x", text=text, id=str(i)) for i, text in enumerate(TEXTS)]
    files = {f"{name}/{split}-00000-of-00001.parquet": rows for name, splits in configs.items() for split in splits}
    declared = {name: {split: f"{name}/{split}-*" for split in splits} for name, splits in configs.items()}
    copies("hf-audio/open-asr-leaderboard", files, declared)
    ignored = clip(0.5, text="ignore_time_segment_in_scoring", id="gap")
    copies(
        "distil-whisper/tedlium", {"default/test/0000.parquet": [ignored, *({k: r[k] for k in ignored} for r in rows)]}
    )


def test_a_bundle_is_measured_by_the_preset(leaderboard, exported, tmp_path, cache):
    out = tmp_path / "out"
    options = api.MeasureOptions(threads=1, robustness=False, preset="open-asr-leaderboard")
    report = api.measure([exported], str(exported), out, options=options).report
    found = report["leaderboard"]
    assert (found["preset"], found["version"]) == ("open-asr-leaderboard", "2025")
    assert found["source"].endswith("7e93d5497269ea73fc59428bfdd58aea98f55f48")
    assert found["clips"] == dict.fromkeys(SETS, 2)  # HMM is empty after normalization
    assert found["not_scored"] == dict.fromkeys(SETS, 1)
    assert found["differs"][1:] == list(DIFFERS)
    for part in (report, *report["other_corpora"]):
        for name, row in found["systems"].items():
            clips = [c for c in part["clips"] if normalized(c["reference"])]
            texts = [[normalized(t) for t in (c["reference"], c["hypotheses"][name])] for c in clips]
            label = next(label for label, corpus in SETS.items() if corpus == part["corpus"]["name"])
            assert row["wer"][label] == round(100 * jiwer.wer(*(list(t) for t in zip(*texts, strict=True))), 2)
            assert row["average_wer"] == round(sum(row["wer"].values()) / 8, 2)
    assert read_report(out / "report.json") == json.loads(json.dumps(report))
    page = (out / "report.html").read_text()
    assert "By the Open ASR Leaderboard’s protocol" in page
    assert "cannot be compared with it" in page
    assert report["command"].endswith("--no-robustness --preset open-asr-leaderboard")
    assert "--corpus" not in report["command"]


def test_a_preset_takes_no_corpora_and_an_unknown_one_is_named(exported, tmp_path):
    with pytest.raises(UserError, match="did you mean 'open-asr-leaderboard'"):
        preset_corpora("open-asr-leaderbord")
    command = [
        "measure",
        str(exported),
        "-o",
        str(tmp_path),
        "--preset",
        "open-asr-leaderboard",
        "--corpus",
        "prompts-en",
    ]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UserError)
    assert "leave out --corpus" in str(result.exception)
