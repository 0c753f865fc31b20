"""Budgets, device profiles, and the search for the fastest form of a student."""

import json
import shutil
import subprocess
import sys

import pytest

from export.assembly.build import export_bundle
from export.bundle.manifest import open_manifest
from export.quantization.int8 import Int8Options
from export.quantization.precisions import parse_precision
from export.search.budget import Budget, Profile, parse_budget, read_profile
from export.search.candidates import Candidates
from export.search.outcome import SearchResult
from export.search.search import _choose, _dominates, export_for, search
from export.search.sensitivity import Probe
from workbench.core.errors import UserError
from workbench.corpus import open_corpus


def test_a_budget_is_read_and_kept():
    budget = parse_budget("wer<=+0.5, size<=60,p50 <= 80.5")
    assert budget == Budget(wer_above=0.5, size_mb=60, p50_ms=80.5)
    row = {"wer": 5.6, "size_mb": 61.0, "peak_rss_mb": 900, "p50_ms": 80.5}
    assert budget.violations(row, fp32_wer=5.0) == ["size_mb 61 > 60", "wer +0.60 > +0.5"]
    assert budget.violations({**row, "size_mb": 60, "wer": 5.5}, fp32_wer=5.0) == []
    assert budget.relative_excess({**row, "wer": 5.75}, fp32_wer=5.0) == pytest.approx(0.5 + 1 / 60)
    assert parse_budget("wer<=5").violations(row, 5.0) == ["wer 5.6 > 5"]


@pytest.mark.parametrize(
    ("text", "said"), [("", "empty"), ("wer<0.5", "expected terms"), ("were<=1", "did you mean 'wer'"), ("size<=+3", "absolute")]
)  # fmt: skip
def test_what_is_no_budget_is_told(text, said):
    with pytest.raises(UserError, match=said):
        parse_budget(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "not valid JSON"), ('{"thread": 2}', "did you mean 'threads'"), ('{"threads": 0}', "'threads'"),
     ('{"encoder": ["int9"]}', "did you mean 'int8'"), ('{"decoder": ["int8_static"]}', "for the encoder")],
)  # fmt: skip
def test_a_profile_that_cannot_be_used_is_told(content, said, tmp_path):
    path = tmp_path / "device.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_profile(path)


def test_a_devices_limits_count_where_the_budget_has_none():
    profile = Profile(size_mb=50, peak_rss_mb=200)
    assert profile.limited(Budget(size_mb=60)) == Budget(size_mb=60, peak_rss_mb=200)


def test_the_fastest_within_the_budget_is_chosen_and_of_equals_the_smallest():
    def row(name, ms, size, breaks=()):
        return {
            "name": name,
            "p50_ms": ms,
            "size_mb": size,
            "peak_rss_mb": 1,
            "wer": 5.0,
            "breaks": list(breaks),
            "over": 4.0,
        }

    rows = [row("a", 100, 90), row("int8", 51, 40), row("c", 50, 60), row("d", 30, 30, ["wer +2.00 > +0.5"])]
    assert _choose(rows).name == "int8"
    assert _dominates(rows[1], rows[0])
    assert not _dominates(rows[2], rows[1])
    assert _choose(rows[3:]) is None
    assert "nearest is d (wer" in str(SearchResult(None, rows[3:], {}).nothing_fits())


@pytest.fixture(scope="module")
def candidates(student, tmp_path_factory):
    bundle = export_bundle(student, tmp_path_factory.mktemp("search") / "fp32", ["fp32"], "tiny")
    return Candidates(bundle, Int8Options(), [])


def test_the_search_measures_chooses_and_confirms(candidates):
    clips, others = open_corpus("prompts-en", "validation", 3), open_corpus("prompts-en", "test", 2)
    profile = Profile(encoder=["fp32", "int8"], decoder=["fp32", "int8"])
    found = search(candidates, parse_budget("wer<=+1000"), profile, clips, others, threads=1)
    names = [row["name"] for row in found.rows]
    assert {"fp32", "int8/fp32", "fp32/int8", "int8"} <= set(names)
    chosen = next(row for row in found.rows if row["name"] == found.chosen.name)
    assert not chosen["breaks"]
    # times of one run are compared with each other, never with another run's
    assert chosen["compared"]
    assert chosen["p50_ms"] <= 1.03 * min(row["p50_ms"] for row in found.rows if row["compared"])
    assert any(row["pareto"] for row in found.rows)
    assert found.test["clips"] == 2
    assert len(found.notes) == 2
    assert "times as long in int8 as in fp32" in found.notes[0]
    json.dumps(found.as_json())


def test_what_a_smaller_vocabulary_loses_counts(candidates, exported):
    clips, profile = open_corpus("prompts-en", "validation", 2), Profile(encoder=["fp32"], decoder=["fp32"])
    found = search(candidates, parse_budget("wer<=+1000"), profile, clips, clips[:1], 1, whole=exported)
    assert any("vocabulary pruning alone changes WER by" in note for note in found.notes)
    assert [row["name"] for row in found.test["systems"]] == ["fp32, all tokens", "fp32"]


def test_layers_that_suffer_most_stay_in_fp32(candidates):
    clips, profile = open_corpus("prompts-en", "validation", 2), Profile(encoder=["fp32", "q4"], decoder=["fp32"])
    found = search(candidates, Budget(wer=0.0), profile, clips, [], 1)
    assert found.chosen is None
    assert len(found.layers["encoder q4"]) == 3
    precisions = open_manifest(candidates.bundle).precisions
    assert any(name.startswith("q4-") for name in precisions)  # forms with a layer left were tried


def test_a_layer_that_changes_moves_the_output(candidates):
    clips = open_corpus("prompts-en", "validation", 2)
    probe = Probe(candidates.bundle, "encoder", clips)
    assert probe.error("fp32") == 0.0
    coarse, fine = (candidates.add(parse_precision(f"{name}/fp32")).precision for name in ("q4", "w8"))
    assert 0 < probe.error(fine) < probe.error(coarse)


@pytest.mark.slow
def test_export_within_a_budget(student, tmp_path):
    device = tmp_path / "device.json"
    device.write_text('{"name": "a phone", "threads": 1, "encoder": ["fp32", "int8"], "decoder": ["fp32", "int8"]}')
    bundle, found = export_for(
        student, tmp_path / "b", "wer<=+1000", device, "prompts-en", Int8Options(), None, name="tiny"
    )
    manifest = open_manifest(bundle, check=True)
    assert manifest.precisions[-1] == found.chosen.name
    assert manifest.content["search"]["device"] == "a phone"
    again = (device, "prompts-en", Int8Options(), None)
    assert export_for(student, bundle, "wer<=+1000", *again, name="tiny") == (bundle, None)
    with pytest.raises(
        UserError, match="does not hold the result of this search"
    ):  # at once, before anything is measured
        export_for(student, bundle, "wer<=+0.1", *again, name="tiny")
    with pytest.raises(UserError, match="--decoder-exporter 'optimun'; did you mean 'optimum'"):
        export_for(student, bundle, "wer<=+1000", *again, name="tiny", through="optimun")
    device.write_text('{"name": "a phone", "threads": 1, "encoder": ["fp32"], "decoder": ["fp32", "int8"]}')
    with pytest.raises(UserError, match="does not hold the result of this search"):  # another device of the same name
        export_for(student, bundle, "wer<=+1000", *again, name="tiny")
    shutil.rmtree(bundle)
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "export", str(student), "-o", str(bundle), "--budget", "wer<=x"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, bundle.exists()) == (2, False)
    assert "expected terms" in done.stderr
