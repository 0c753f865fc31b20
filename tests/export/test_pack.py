"""What is copied to a device: the part of a bundle that one runtime reads."""

import json
import shutil
import subprocess
import sys

import pytest

from export.assembly.pack import pack
from export.bundle.card import _usage
from export.edge import BundleError, Recognizer, read_wav
from export.measurement.measure import measure
from export.verification.clients import client_module, known_clients
from export.verification.verify import verify_bundle
from tests.conftest import tone
from workbench.audio.decode import write_wav
from workbench.core.errors import UserError
from workbench.corpus import open_corpus


def test_our_own_runtime_says_the_same_from_its_part(exported, tmp_path):
    folder = pack(exported, tmp_path / "device", "edge")
    write_wav(tmp_path / "a.wav", tone(1.5))
    expected = Recognizer(exported, "int8", 1).transcribe(read_wav(tmp_path / "a.wav")).text
    done = subprocess.run(
        [sys.executable, "-B", "-m", "edge", "../a.wav", "--threads", "1"],
        cwd=folder, capture_output=True, check=True, encoding="utf-8",
    )  # fmt: skip
    assert done.stdout == f"../a.wav\t{expected}\n"
    assert sorted(p.name for p in (folder / "onnx").iterdir()) == [
        "encoder_model.onnx", "frontend.onnx", "speech_detector.onnx", "step_decoder.onnx",
    ]  # fmt: skip
    assert len(Recognizer(folder).new_detector()(tone(2.0))) == 63  # the detector came along
    card = (folder / "MODEL_CARD.md").read_text()
    assert "python -B -m edge --precision int8" in card
    assert "sherpa" not in card


def test_a_card_shows_only_what_runs_from_there(exported):
    content = json.loads((exported / "bundle.json").read_text())
    assert "sherpa_decoder.onnx" in _usage(content)
    del content["precisions"]["fp32"]
    assert "python -B -m edge --precision int8" in _usage(content)
    assert "sherpa_decoder.onnx" not in _usage(content)


@pytest.mark.parametrize("client", known_clients())
def test_a_part_holds_what_its_runtime_asks_for_and_nothing_else(exported, tmp_path, client):
    folder = pack(exported, tmp_path / "device", client, "fp32")
    content = json.loads((folder / "bundle.json").read_text())
    assert set(content["precisions"]) == {"fp32"}
    assert set(content["precisions"]["fp32"]) == set(client_module(client).GRAPHS)
    graphs = {
        *content["precisions"]["fp32"].values(),
        *(f for f in client_module(client).FILES if f.startswith("onnx")),
    }
    assert {p.relative_to(folder).as_posix() for p in (folder / "onnx").iterdir()} == graphs
    assert set(content["files"]) == {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "bundle.json"
    }


def test_a_part_is_verified_in_its_runtime_and_in_no_other(exported, student, tmp_path):
    whole = verify_bundle(exported, student, open_corpus("prompts-en", "validation")[:2], "two", ["edge"])
    folder = pack(exported, tmp_path / "device", "edge", "fp32")
    assert len(json.loads((folder / "bundle.json").read_text())["verification"]["clients"]) == 1
    found = verify_bundle(folder, student, open_corpus("prompts-en", "validation")[:2], "two", ["edge", "sherpa_onnx"])
    assert [c["client"] for c in found["clients"]] == ["edge"]
    assert found["clients"][0]["tokens_equal"] == whole["clients"][0]["tokens_equal"]
    assert found["not_installed"] == {"sherpa_onnx": "the bundle was packed for edge"}


def test_what_cannot_be_packed_is_told(exported, tmp_path):
    folder = pack(exported, tmp_path / "device", "sherpa_onnx")
    with pytest.raises(UserError, match="exists; choose another -o, or add --overwrite"):
        pack(exported, folder, "edge")
    with pytest.raises(UserError, match="edgy"):
        pack(exported, tmp_path / "other", "edgy")
    with pytest.raises(UserError, match="no precision 'q9'"):
        pack(exported, tmp_path / "other", "edge", "q9")
    with pytest.raises(UserError, match="is the bundle itself"):
        pack(exported, exported, "edge", overwrite=True)
    with pytest.raises(UserError, match="has no frontend graph, it was packed for sherpa_onnx"):
        pack(folder, tmp_path / "other", "edge")
    with pytest.raises(BundleError, match="packed for sherpa_onnx"):
        Recognizer(folder)
    with pytest.raises(UserError, match="measure the full bundle"):
        measure([folder], str(exported), tmp_path / "report", ["prompts-en"], "test")
    assert not (tmp_path / "other").exists()
    assert pack(exported, folder, "edge", overwrite=True) == folder
    assert Recognizer(folder).precision == "int8"


def test_what_is_copied_is_checked_and_nothing_else(exported, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(exported, bundle)
    for name in ("onnx/sherpa_decoder.onnx", "onnx/encoder_model_quantized.onnx"):
        with (bundle / name).open("ab") as file:
            file.write(b"damaged")
    assert Recognizer(pack(bundle, tmp_path / "device", "edge", "fp32"))
    with pytest.raises(UserError, match=r"sherpa_decoder\.onnx: its SHA-256 is not the one"):
        pack(bundle, tmp_path / "other", "sherpa_onnx", "fp32")
    manifest = json.loads((bundle / "bundle.json").read_text())
    del manifest["files"]["vocab.json"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"vocab\.json: bundle.json does not list it"):
        pack(bundle, tmp_path / "other", "edge", "fp32")
    assert not (tmp_path / "other").exists()
