"""Optimum in an environment of its own: when it is needed, how it is made, what runs in it."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export.assembly.build import export_bundle
from export.graphs.names import DECODER
from export.graphs.step import SUPPRESSED_LOGIT
from export.optimum import environment as place
from export.optimum.environment import Environment, environment, is_satisfied
from export.verification.clients import unavailable_reason
from export.verification.clients.optimum import missing
from export.verification.json_process import JsonProcess
from workbench.core.errors import UserError
from workbench.models.whisper.family import Whisper

NOISY = """
import os, runpy

there = runpy.run_path({transcribe!r})

class Noisy:
    def __init__(self, *given):
        print("loading")

    def answer(self, **asked):
        os.write(1, b"a library in C\\n")
        print("answering")
        return {{"echo": 1 / asked["divisor"]}}

there["main"].__globals__["Recognizer"] = Noisy
there["main"]("", "", "1")
"""


@pytest.fixture
def there():
    """The environment; tests that need it skip where it cannot be made."""
    try:
        return environment()
    except UserError as error:
        pytest.skip(str(error))


def installed(folder, name, version, *wanted):
    """Metadata of a package as pip leaves it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {w}" for w in wanted)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("transformers", "optimum", "met"),
    [("4.57.6", "2.1.3", True), ("5.24.0", "2.1.3", False), ("4.57.6", "2.3.0", False), ("4.57.6", None, False)],
)
def test_our_own_packages_do_where_they_are_what_the_onnx_package_requires(tmp_path, monkeypatch, transformers, optimum, met):  # fmt: skip
    wanted = ["the-optimum~=2.1.0", "the-transformers<4.58.0,>=4.36", 'nothing-of-ours; extra == "tests"']
    installed(tmp_path, "the-onnx", "0.1.0", *wanted)
    installed(tmp_path, "the-transformers", transformers)
    if optimum:
        installed(tmp_path, "the-optimum", optimum)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert is_satisfied("the-onnx") is met
    assert not is_satisfied("a-package-that-nobody-has")


def test_where_our_own_packages_do_no_environment_is_made(cache, monkeypatch):
    monkeypatch.setattr(place, "is_satisfied", lambda package: package == "optimum-onnx")
    assert environment() == Environment(None)
    assert not cache.exists()


def test_the_path_has_the_environment_first_and_never_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "transformers.py").write_text("raise SystemExit('the current folder was imported from')")
    (tmp_path / "script.py").write_text("import sys; print(*sys.path, sep='\\n')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path / "theirs")]))
    there = Environment(tmp_path / "overlay")
    command = there.command(tmp_path / "script.py")
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=there.variables())
    places = said.stdout.splitlines()
    assert places[:2] == [str(tmp_path / "overlay"), str(tmp_path / "theirs")]
    assert not {"", str(tmp_path)} & set(places)


@pytest.fixture
def asked_anew():
    """Whether Optimum is there is found out once a process: not from what another test found, nor for the next one."""
    missing.cache_clear()
    yield
    missing.cache_clear()


def test_without_a_network_the_client_is_not_there_and_says_what_to_do(cache, monkeypatch, asked_anew):
    monkeypatch.setattr(place, "is_satisfied", lambda _: False)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "https://127.0.0.1:9/simple", "PIP_RETRIES": "0", "UV_OFFLINE": "1",
               "UV_NO_CACHE": "1"}  # fmt: skip
    for name, value in nowhere.items():
        monkeypatch.setenv(name, value)
    for client in ("optimum", "optimum_30s"):
        remedy = unavailable_reason(client)
        assert remedy is not None
        assert "give pip access to its package index and run the same command again" in remedy
        assert "\n" not in remedy
    assert [p for p in (cache / "optimum").iterdir() if not p.name.endswith(".lock")] == []


@pytest.mark.slow
def test_the_environment_is_made_once_and_holds_what_was_asked_for(there, cache, monkeypatch):
    if there.folder is None:
        pytest.skip("our own packages do")
    made = environment()
    assert made.folder is not None
    assert made.folder.is_relative_to(cache)
    names = {line.split("==")[0] for line in place.REQUIREMENTS.read_text().splitlines() if "==" in line}
    assert {p.name.split("-")[0].replace("_", "-") for p in made.folder.glob("*.dist-info")} == names
    monkeypatch.setattr(place.subprocess, "run", lambda *_, **__: pytest.fail("made twice"))
    assert environment() == made


def test_an_environment_that_cannot_be_imported_is_not_kept(there, cache, tmp_path, monkeypatch):
    """Of what is needed one package alone: it is installed, and then it shows that Optimum is not there."""
    monkeypatch.setattr(place, "is_satisfied", lambda _: False)
    lines = place.REQUIREMENTS.read_text().split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("optimum=="))
    (tmp_path / "few.txt").write_text("\n".join(lines[start : start + 2]) + "\n")
    monkeypatch.setattr(place, "REQUIREMENTS", tmp_path / "few.txt")
    with pytest.raises(
        UserError, match=r"cannot be imported together with the installed packages \(ModuleNotFound.*optimum"
    ):
        environment()
    assert [p for p in (cache / "optimum").iterdir() if not p.name.endswith(".lock")] == []


def test_what_libraries_print_is_no_answer_and_an_error_is_one_line(there, tmp_path):
    (tmp_path / "noisy.py").write_text(NOISY.format(transcribe=str(Path(place.__file__).parent / "transcribe.py")))
    script = JsonProcess("it", there.command(tmp_path / "noisy.py"), there.variables())
    assert "transformers 4" in script.ready["version"]
    assert script.ask(divisor=4) == {"echo": 0.25}
    with pytest.raises(RuntimeError, match=r"^ZeroDivisionError: division by zero$"):
        script.ask(divisor=0)
    assert script.process.wait() == 1


def test_a_script_that_ends_is_told_from_one_that_answers(tmp_path):
    (tmp_path / "ends.py").write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="exit status 3"):
        JsonProcess("it", Environment(None).command(tmp_path / "ends.py"))


@pytest.mark.slow
@torch.no_grad()
def test_our_merged_decoder_computes_what_optimums_exporter_writes(there, tiny_checkpoint, tmp_path):
    """The prompt without a past, then five steps with one: logits and presents of both, and torch's logits."""
    from export.graphs.merged import merged_graph
    from export.graphs.merged_by_optimum import merged_decoder

    model = Whisper(tiny_checkpoint).load()
    merged_decoder(model, [3, 9], [5], tmp_path / "theirs.onnx")
    onnx.save(merged_graph(model, [3, 9], [5]), tmp_path / "ours.onnx")
    theirs, ours = (ort.InferenceSession(tmp_path / f"{name}.onnx") for name in ("theirs", "ours"))
    names = [o.name for o in theirs.get_outputs()]
    assert [o.name for o in ours.get_outputs()] == names
    assert [i.name for i in ours.get_inputs()] == [i.name for i in theirs.get_inputs()]
    random = np.random.default_rng(0)
    states = random.normal(size=(2, 9, 32)).astype(np.float32)
    tokens = random.integers(0, 256, (2, 9))  # a prompt of four, then one at a time
    hidden = model.model.decoder(torch.from_numpy(tokens), None, torch.from_numpy(states)).last_hidden_state
    wanted = model.proj_out(hidden).numpy()
    past = {i.name: np.zeros((2, 2, 1, 16), np.float32) for i in ours.get_inputs() if i.name.startswith("past")}
    for begin, end in [(0, 4), *((n, n + 1) for n in range(4, 9))]:
        given = {"input_ids": tokens[:, begin:end], "encoder_hidden_states": states, "use_cache_branch": np.array([begin > 0]), **past}  # fmt: skip
        a, b = (dict(zip(names, session.run(names, given), strict=True)) for session in (ours, theirs))
        for name in names:
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-4, err_msg=f"{name} from token {begin}")
        said = np.setdiff1d(np.arange(wanted.shape[2]), [3, 5, 9])
        np.testing.assert_allclose(b["logits"][..., said], wanted[:, begin:end, said], rtol=0, atol=1e-4)
        assert (b["logits"][..., [3, 9]] < SUPPRESSED_LOGIT / 2).all()
        assert (b["logits"][..., 5] < SUPPRESSED_LOGIT / 2).all() == (begin == 0)
        # with a past the encoder's presents are empty: they stay what they were
        new = {name: b[name.replace("past_key_values", "present")] for name in past}
        past = {name: value if value.size else past[name] for name, value in new.items()}


@pytest.mark.slow
def test_optimum_exports_a_decoder_whatever_the_encoder_is(there, tiny_checkpoint, tmp_path):
    """Layers of the encoder that this transformers does not know are not handed over."""
    from export.graphs.merged_by_optimum import merged_decoder

    model = Whisper(tiny_checkpoint).load()
    merged_decoder(model, [], [], tmp_path / "stock.onnx")
    model.model.encoder.layers[0].fc1 = torch.nn.Sequential(torch.nn.Linear(32, 4, bias=False), torch.nn.Linear(4, 64))
    model.config.encoder_ranks = {"model.encoder.layers.0.fc1": 4}
    merged_decoder(model, [], [], tmp_path / "low_rank.onnx")
    assert (tmp_path / "low_rank.onnx").read_bytes() == (tmp_path / "stock.onnx").read_bytes()


@pytest.mark.slow
def test_a_bundle_is_exported_through_optimum(there, student, exported, tmp_path):
    # compares with torch; each precision finds its nodes in a graph of Optimum's, too
    precisions = ["fp32", "int8-0/int8-0", "fp16", "q4"]
    bundle = export_bundle(student, tmp_path / "bundle", precisions, through="optimum")
    assert json.loads((bundle / "bundle.json").read_text())["through"] == "optimum"
    decoder = onnx.load(bundle / "onnx" / DECODER)
    assert decoder.producer_name == "optimum-onnx"
    assert onnx.load(exported / "onnx" / DECODER).producer_name == "distill-workbench"
    before = (bundle / "bundle.json").read_bytes()
    export_bundle(student, bundle, precisions, through="optimum")
    assert (bundle / "bundle.json").read_bytes() == before
    with pytest.raises(UserError, match="another exporter"):
        export_bundle(student, bundle, precisions)


def test_an_unknown_exporter_is_named(student, tmp_path):
    with pytest.raises(UserError, match="--decoder-exporter 'optimun'; did you mean 'optimum'"):
        export_bundle(student, tmp_path / "bundle", ["fp32"], through="optimun")
