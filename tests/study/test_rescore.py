"""The recomputed figures come from the kept transcripts and the corrected references, and nothing else."""

import json

import pytest

from tests.conftest import ROOT, load_script


@pytest.fixture(scope="module")
def rescore():
    return load_script("rescore")


@pytest.fixture(scope="module")
def published():
    return json.loads((ROOT / "docs/results/studies/rescored.json").read_text("utf-8"))


def test_the_published_figures_are_what_the_script_computes(rescore, published):
    assert rescore.rescored_bundle("edge/spanish") == published["bundle"]
    found = rescore.rescored("studies/targets")
    assert json.loads(json.dumps(found)) == [g for g in published["groups"] if g["study"] == "studies/targets"]


def test_references_are_corrected_and_marked_clips_left_out(rescore):
    row = {
        "corpus": "prompts-es-corrupt40",
        "ids": ["vm-password", "vm-reachoper", "vm-and"],
        "references": ["contrasena", "Marque 0 para hablar con la operadora.", "y"],
        "hypotheses": ["contraseña", "Marque el número cero", "y"],
    }
    run = rescore.corrected_run(row)
    assert run["references"] == ["contraseña", "y"]
    assert run["hypotheses"] == ["contraseña", "y"]
    assert run["left_out"] == 1


def test_fine_tuning_stands_in_every_comparison_that_has_it(published):
    for group in published["groups"]:
        names = {row["name"] for row in group["arms"]}
        if "fine_tuning" in names:
            for row in group["arms"]:
                if row["name"] not in ("fine_tuning", "teacher"):
                    assert row["vs_fine_tuning"]["wer"]["p_holm"] >= row["vs_fine_tuning"]["wer"]["p"]
