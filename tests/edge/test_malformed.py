"""Bundles from strangers: one line of our own error for each, no traceback, nothing of theirs run, nothing that hangs."""

import json
import os
import subprocess
import sys

import onnx
import pytest

from export.assembly.pack import pack
from export.bundle.manifest import open_manifest
from export.bundle.recorded import check_recorded
from export.edge import AudioError, BundleError, Recognizer, read_manifest
from export.edge.__main__ import main
from export.edge.bundle.graph_file import unsafe_reason
from export.measurement.measure import measure
from export.verification.verify import verify_bundle
from tests.conftest import tone
from tests.malformed import (
    DAMAGED,
    FOREIGN,
    REFUSED,
    copied,
    mutated_manifests,
    put,
    seal,
    with_file,
    with_json,
    write_manifest,
)
from workbench.audio.decode import write_wav
from workbench.core.errors import UserError
from workbench.corpus import open_corpus

OURS = (BundleError, AudioError, UserError)


@pytest.fixture
def bundle(exported, tmp_path):
    return copied(exported, tmp_path / "bundle")


def one_line(error):
    return str(error) and len(str(error).splitlines()) == 1 and len(str(error)) < 1500


@pytest.mark.parametrize("name", [*REFUSED, *DAMAGED])
def test_the_runtime_refuses_it_in_one_line(bundle, name, tmp_path, monkeypatch, capsys):
    (REFUSED | DAMAGED)[name](bundle)
    with pytest.raises(BundleError) as caught:
        Recognizer(bundle, threads=1, vad=False).transcribe(tone(0.3))
    assert one_line(caught.value)
    write_wav(tmp_path / "a.wav", tone(0.3))
    monkeypatch.setattr(sys, "argv", ["edge", "--no-vad", "--bundle", str(bundle), str(tmp_path / "a.wav")])
    assert main() in (1, 2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")


# that graphs do not fit each other or bundle.json is only found by running them
FOUND_BY_RUNNING = ("a prompt beyond the vocabulary", "an end beyond the vocabulary", "states of one axis", "an output of another name", "the wrong graph")  # fmt: skip


@pytest.mark.parametrize("name", sorted({*REFUSED, *DAMAGED, *FOREIGN} - {*FOUND_BY_RUNNING}))
def test_the_workbench_refuses_it_in_one_line(bundle, name):
    (REFUSED | DAMAGED | FOREIGN)[name](bundle)
    with pytest.raises(UserError) as caught:
        open_manifest(bundle, check=True)
    assert one_line(caught.value)


# one of each kind of check, since every command opens bundles in the same way
@pytest.mark.parametrize(
    "name", ["no JSON", "no checkpoint", "an extra module", "a linked file", "two tokens swapped", "an endless loop", "a kernel"]
)  # fmt: skip
def test_verify_measure_and_demo_refuse_it_in_one_line(bundle, exported, student, name, tmp_path):
    from demo.systems import Systems

    (REFUSED | DAMAGED | FOREIGN)[name](bundle)
    clips = open_corpus("prompts-en", "validation")[:1]
    for use in (
        lambda: verify_bundle(bundle, student, clips, "test", ["edge"], 1),
        lambda: measure([bundle], str(exported), tmp_path / "out", limit=1, threads=1, robustness=False),
        lambda: measure([exported], str(bundle), tmp_path / "out", limit=1, threads=1, robustness=False),
        lambda: Systems.open([bundle], str(exported), "fp32", 1, vad=False),
    ):
        with pytest.raises(UserError) as caught:
            use()
        assert one_line(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND_BY_RUNNING)
def test_what_only_running_finds_is_told_in_one_line(bundle, exported, student, speech, name, tmp_path):
    from demo.systems import Systems

    REFUSED[name](bundle)
    clips = open_corpus(str(speech()), "validation")[:1]
    found = verify_bundle(bundle, student, clips, "test", ["edge"], 1)
    assert one_line(found["clients"][0]["error"])
    for use in (
        lambda: measure([bundle], str(exported), tmp_path / "out", limit=1, threads=1, robustness=False),
        lambda: Systems.open([bundle], str(exported), "fp32", 1, vad=False),
    ):
        with pytest.raises(UserError) as caught:
            use()
        assert one_line(caught.value)


@pytest.mark.parametrize("name", sorted({*REFUSED, *DAMAGED, *FOREIGN}))
def test_packing_it_works_or_is_refused_in_one_line(bundle, name, tmp_path):
    (REFUSED | DAMAGED | FOREIGN)[name](bundle)
    try:
        folder = pack(bundle, tmp_path / "device", "edge", "fp32")
    except UserError as error:
        said = str(error)
        assert len(said.splitlines()) == 1
    else:
        written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert written <= {"bundle.json", "MODEL_CARD.md", "vocab.json", *(p.relative_to(bundle).as_posix() for p in (bundle / "edge").rglob("*")),
                           "onnx/frontend.onnx", "onnx/encoder_model.onnx", "onnx/step_decoder.onnx", "onnx/speech_detector.onnx"}  # fmt: skip


def test_every_mutated_manifest_is_read_or_refused(exported):
    """Types and sizes of all kinds in every field: thousands of manifests, no other exception."""
    content = json.loads((exported / "bundle.json").read_text())
    content |= {"verification": {"clients": [{"client": "edge", "precision": "fp32", "version": "1", "required": True, "passed": True,
                "tokens_equal": "1 of 1", "wer": 1.0, "wer_torch": 1.0, "error": None}], "not_installed": {}}}  # fmt: skip
    said = []
    from export.bundle.card import write_card
    from export.edge.bundle.fields import check_fields

    for path, value, changed in mutated_manifests(content):
        try:
            check_fields(changed)
            check_recorded(changed)
        except ValueError as error:
            said.append((path, value, error))
            continue
        write_card(exported.parent, changed)  # what is accepted can be told
    assert {path[0] for path, _, _ in said} >= {"exporter", "precisions", "tokens", "decoding", "files", "verification"}
    assert len(said) > 300
    assert not [(path, value) for path, value, error in said if not one_line(error)]


def test_code_in_a_bundle_is_not_run_and_a_changed_copy_is_told(bundle, student, speech, caplog, monkeypatch):
    ran = bundle.parent / "ran"
    code = f"open({str(ran)!r}, 'w').close()\n".encode()
    put(bundle / "edge/words.py", code)
    put(bundle / "edge/__init__.py", code)
    put(bundle / "edge/another.py", code)
    seal(bundle, "edge/words.py", "edge/__init__.py", "edge/another.py")
    monkeypatch.chdir(bundle)  # from where Python would import `edge`
    clips = open_corpus(str(speech()), "validation")[:2]
    found = verify_bundle(bundle, student, clips, "test", ["edge"], 1)
    assert all(c["passed"] for c in found["clients"] if c["precision"] == "fp32")
    assert not ran.exists()
    assert "edge/__init__.py, edge/another.py, edge/words.py" in caplog.text


def test_workers_do_not_import_from_the_current_folder(exported, student, speech, tmp_path, monkeypatch):
    for name in ("onnxruntime.py", "numpy.py", "edge.py"):
        (tmp_path / name).write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    clips = open_corpus(str(speech()), "validation")[:1]
    bundle = copied(exported, tmp_path / "bundle")
    found = verify_bundle(bundle, student, clips, "test", ["edge"], 1)
    assert [c["error"] for c in found["clients"]] == [None, None]


@pytest.mark.parametrize("name", ["Loop", "EPContext", "Snpe"])
def test_a_graph_with_an_operator_that_is_not_run_is_refused(name, tmp_path):
    assert name in unsafe_reason(graph_of(name, tmp_path))


def test_every_operator_that_runs_a_graph_again_and_again_is_refused(tmp_path):
    """Of all that onnxruntime knows; a branch of `If` is run once."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    schemas = get_all_operator_schema()
    names = {s.name for s in schemas if any("GRAPH" in str(a.type) for a in s.attributes.values())} - {"If"}
    assert {"Loop", "WhisperBeamSearch"} <= names
    assert not [name for name in names if not unsafe_reason(graph_of(name, tmp_path))]


def graph_of(operator, folder):
    model = onnx.helper.make_model(onnx.helper.make_graph([onnx.helper.make_node(operator, [], ["y"])], "g", [], []))
    path = folder / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_settings_that_name_no_code_are_accepted(bundle):
    """A flag that older versions of transformers wrote, and an added word that reads like a key."""
    with_json("config.json", _attn_implementation_autoset=True)(bundle)
    with_file("added_tokens.json", b'{"kernel": 51864}')(bundle)
    assert open_manifest(bundle, check=True).name == "tiny"


def test_what_others_leave_in_a_folder_does_no_harm(bundle):
    put(bundle / "onnx/.DS_Store", b"")
    for name in ("._config.json", "onnx/._encoder_model.onnx", "edge/._words.py"):
        put(bundle / name, b"\x00\x05\x16\x07")
    put(bundle / ".git/config", b"")
    put(bundle / ".gitattributes", b"")
    assert open_manifest(bundle, check=True).name == "tiny"


def test_an_unlisted_file_is_named_with_what_to_do(bundle):
    put(bundle / "edge/__pycache__/words.cpython-311.pyc", b"")
    with pytest.raises(UserError, match=r"words.cpython-311.pyc: bundle.json does not list it; .*delete .*__pycache__"):
        open_manifest(bundle, check=True)


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_sound_files_that_never_end_are_refused(kind, tmp_path):
    from export.edge import read_wav

    path = tmp_path / "a.wav"
    os.mkfifo(path) if kind == "fifo" else path.symlink_to("/dev/zero")
    with pytest.raises(AudioError, match="is not a regular file"):
        read_wav(path)


def test_a_manifest_within_its_bounds_is_read(exported):
    assert read_manifest(exported).content["format"] == 2
    with pytest.raises(ValueError, match="field 'workbench' is missing"):
        check_recorded({})


def test_the_command_refuses_a_bundle_without_a_traceback(bundle, tmp_path):
    content = json.loads((bundle / "bundle.json").read_text())
    write_manifest(bundle, content | {"tokens": ["end"]})
    done = subprocess.run(
        [sys.executable, "-m", "export.edge", "--bundle", str(bundle), "a.wav"], capture_output=True, text=True
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
