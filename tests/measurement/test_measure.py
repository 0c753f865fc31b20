"""A measurement: what the report holds, one section a corpus, each clip in its own language."""

import json
import shutil
from dataclasses import replace

import pytest

from export.bundle.manifest import open_manifest
from export.measurement.latency import STAGES, BenchmarkResult, System
from export.measurement.measure import Clips, _key, _section, measure, trained_on
from export.measurement.tables import columns, print_table, rows, sections
from workbench.core.errors import UserError
from workbench.core.files import read_json, write_json
from workbench.corpus import corpus_identity, open_corpus
from workbench.text.normalizers import normalizer_name


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(exported, tmp_path / "bundle")


def test_a_measurement_holds_the_promised_fields(bundle, exported, speech, tmp_path, cache):
    manifest = str(speech(3))
    # the run that the student comes from: 700 steps, more than the report has points
    rows = [{"step": i + 1, "stage": "encoder" if i < 200 else "decoder", "loss": 2.0 - i / 700} for i in range(700)]
    rows.append({"step": 700, "stage": "decoder", "validation_wer": 7.5, "validation_cer": 2.5})
    (bundle.parent / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = measure([bundle], str(exported), tmp_path / "out", [manifest], "test", threads=1)
    (training,) = report["training"].values()
    assert training["validation"] == [{"step": 700, "wer": 7.5, "cer": 2.5}]
    assert training["steps"][-1] == 700
    assert training["loss"][0] == pytest.approx(2.0 - 1 / 700, abs=1e-3)
    assert training["stage"].index("decoder") == training["steps"].index(200) + 1
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written == report
    assert set(report) >= {"schema", "host", "corpus", "systems", "clips"}
    assert report["corpus"] | {"seconds": 0} == {
        "name": manifest, "split": "test", "clips": 3, "seconds": 0, "not_scored": 0, "headline": "wer", "trained_on": None,
        "normalizers": {"en": normalizer_name("en")},
    }  # fmt: skip
    assert [s["kind"] for s in report["systems"]] == ["teacher", "student", "student"]
    for system in report["systems"]:
        assert set(system) >= {
            "name", "kind", "runtime", "precision", "parameters", "size_mb", "wer", "wer_ci", "cer", "substitutions",
            "deletions", "insertions", "loops", "latency_ms", "stages_ms", "rtfx", "load_ms", "peak_rss_mb",
        }  # fmt: skip
    # the student in fp32 is the teacher here
    assert report["systems"][1]["wer"] == report["systems"][0]["wer"]
    assert report["systems"][1]["wer_difference"] == {"points": 0.0, "ci": None}  # three clips
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page
    assert "<script" not in page  # self-contained
    assert "learning curves" in page
    assert "<audio" not in page  # recordings may be private
    assert "this page was made without recordings; `workbench report` puts them in" in page
    assert "cannot be told" in page  # three clips
    assert "Ship none of these yet" in page
    assert report["command"].endswith(f"--corpus {manifest} --split test --threads 1 --repeats 1")
    (tmp_path / "out" / "report.html").unlink()
    assert "Sounds without speech" in page
    assert open_manifest(bundle, check=True).content["measurement"]["systems"][0]["wer"] == report["systems"][1]["wer"]
    again = measure([bundle], str(exported), tmp_path / "out", [manifest], "test", threads=1)
    assert again["clips"] == report["clips"]  # not measured anew
    assert (tmp_path / "out" / "report.html").read_text() == page


def test_each_corpus_has_a_section_and_says_whether_it_was_trained_on(
    bundle, exported, speech, tmp_path, cache, capsys
):
    own = speech(2)
    other = tmp_path / "strangers" / "manifest.jsonl"
    other.parent.mkdir()
    lines = [json.loads(line) for line in own.read_text().splitlines()]
    other.write_text("".join(json.dumps(row | {"language": "es", "text": "marque veintidós"}) + "\n" for row in lines))
    content = read_json(bundle / "bundle.json", "a bundle")
    write_json(bundle / "bundle.json", content | {"run": {"corpora": [corpus_identity(str(own))]}})
    report = measure([bundle], str(exported), tmp_path / "out", [str(own), str(other)], threads=1, robustness=False)
    (strangers,) = report["other_corpora"]
    assert [report["corpus"]["trained_on"], strangers["corpus"]["trained_on"]] == [True, False]
    assert strangers["corpus"]["normalizers"] == {"es": normalizer_name("es")}
    assert [len(part["clips"]) for part in (report, strangers)] == [2, 2]
    print_table(report)
    printed = capsys.readouterr().out
    assert "A corpus that the students were not trained on" in printed
    assert normalizer_name("es") in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "A corpus that the students were not trained on" in page
    assert "too few clips" in page
    kept = open_manifest(bundle, check=True).content["measurement"]
    assert kept["other_corpora"][0]["systems"][0]["name"] == report["systems"][1]["name"]
    with pytest.raises(UserError, match="named twice"):
        measure([bundle], str(exported), tmp_path / "out", [str(own), str(own)])


def test_a_bundle_that_names_no_corpora_claims_nothing(exported, speech):
    assert trained_on(str(speech(1)), [exported]) is None


def test_a_corrected_language_reference_or_normalizer_is_measured_anew(exported, speech, monkeypatch):
    systems = [System("a", "teacher", exported, "fp32")]
    clips = open_corpus(str(speech(2)), "test")

    def key(utterances):
        return _key(systems, [Clips("corpus", "test", utterances, 0)], 1, 1, False)

    first = key(clips)
    assert key(clips) == first
    assert key([replace(u, language="es") for u in clips]) != first
    assert key([replace(u, text=u.text + " more") for u in clips]) != first
    monkeypatch.setattr("workbench.text.normalizers.VERSION", 99)
    assert key(clips) != first


def test_clips_that_are_not_to_be_scored_are_left_out_and_counted(
    bundle, exported, speech, tmp_path, cache, monkeypatch
):
    manifest = str(speech(3))
    first, *others = open_corpus(manifest, "test")
    monkeypatch.setattr("export.measurement.measure.open_corpus", lambda *_: [replace(first, scored=False), *others])
    report = measure([bundle], str(exported), tmp_path / "out", [manifest], threads=1, robustness=False)
    assert (report["corpus"]["clips"], report["corpus"]["not_scored"]) == (2, 1)
    assert first.id not in {clip["id"] for clip in report["clips"]}
    monkeypatch.setattr("export.measurement.measure.open_corpus", lambda *_: [replace(first, scored=False)])
    with pytest.raises(UserError, match="marked as not scorable"):
        measure([bundle], str(exported), tmp_path / "out", [manifest])


def test_mixed_languages_are_scored_each_by_its_own_and_shown_apart(exported, speech):
    first, second = open_corpus(str(speech(2)), "test")
    clips = [replace(first, text="my favourite colour"), replace(second, text="今天天气很好", language="zh")]
    stages = dict.fromkeys(STAGES, 1.0)
    said = BenchmarkResult(["my favorite color", "今天天气很坏"], [stages] * 2, [True] * 2, [False] * 2, [3, 3])
    systems = [System("teacher", "teacher", exported, "fp32"), System("student", "student", exported, "int8")]
    section = _section(systems, [said, said], Clips("prompts-en", "test", clips, 0), [exported])
    assert section["systems"][1]["by_language"]["en"]["wer"] == 0
    assert section["systems"][1]["by_language"]["zh"]["cer"] == pytest.approx(100 / 6, abs=1e-3)
    assert section["corpus"]["headline"] == "cer"
    assert columns(section)[1] == "CER %"
    assert rows(section)[0][1] == f"{section['systems'][0]['cer']:.2f}"
    assert sections(section | {"other_corpora": []})[0][1]["clips"][1]["language"] == "zh"
