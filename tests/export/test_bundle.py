"""Bundles of a tiny model: graphs that agree with torch, a runtime without torch, files that are checked."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest

import export.assembly.build
from export.assembly.build import export_bundle
from export.assembly.current import exporter_fingerprint
from export.bundle.manifest import open_manifest, size_mb, write_manifest
from export.edge import AudioError, BundleError, Recognizer, read_wav
from export.edge.audio.resample import resample
from export.edge.bundle.tokens import Detokenizer
from export.measurement.latency import System, time_systems
from export.verification.agreement import within_budget
from export.verification.verify import verify_bundle
from tests.conftest import ROOT, tone
from tests.malformed import REFUSED
from workbench.audio.decode import decode, write_wav
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.evaluation.scoring import score
from workbench.models.whisper.decoding import greedy
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.passes import encode


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(exported, tmp_path / "bundle")


def test_the_folder_holds_what_its_readers_need(exported):
    files = {p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file()}
    assert {
        "bundle.json", "MODEL_CARD.md", "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json",
        "vocab.json", "merges.txt", "added_tokens.json", "normalizer.json", "onnx/frontend.onnx", "onnx/encoder_model.onnx",
        "onnx/encoder_model_quantized.onnx", "onnx/decoder_model_merged.onnx", "onnx/decoder_model_merged_quantized.onnx",
        "edge/__main__.py", "edge/requirements.txt",
    } <= files  # fmt: skip
    manifest = open_manifest(exported, check=True)
    assert set(manifest.content["files"]) == files - {"bundle.json"}
    assert manifest.precisions == ["fp32", "int8"]
    assert manifest.content["length"] == "true"
    assert max(manifest.content["parity"]["fp32"].values()) < 1e-3
    assert size_mb(manifest, "int8") < size_mb(manifest, "fp32")


def test_every_token_is_in_vocab_json_or_added_tokens_json(exported, student):
    """onnx-asr reads both, and no other file with tokens."""
    plain, added = (json.loads((exported / name).read_text()) for name in ("vocab.json", "added_tokens.json"))
    assert not set(plain) & set(added)
    assert plain | added == Whisper(student).tokenizer.get_vocab()


def test_an_old_generation_config_is_completed_and_forces_no_language(tiny_checkpoint, tmp_path):
    """Checkpoints from before 2023 list no languages, and force one; clients would refuse to be asked for another."""
    old = shutil.copytree(tiny_checkpoint, tmp_path / "old")
    whole = json.loads((old / "generation_config.json").read_text())
    keys = ("lang_to_id", "task_to_id", "is_multilingual", "no_timestamps_token_id")
    spanish, transcribe = whole["lang_to_id"]["<|es|>"], whole["task_to_id"]["transcribe"]
    kept = {key: value for key, value in whole.items() if key not in keys}
    (old / "generation_config.json").write_text(
        json.dumps(kept | {"forced_decoder_ids": [[1, spanish], [2, transcribe]]})
    )
    family = Whisper(old)
    assert family.language_ids == Whisper(tiny_checkpoint).language_ids == {"en": 258, "es": 259}
    made = export_bundle(old, tmp_path / "bundle", ["fp32"], "old")
    written = json.loads((made / "generation_config.json").read_text())
    assert {key: written[key] for key in keys} == {key: whole[key] for key in keys}
    assert "forced_decoder_ids" not in written
    assert set(open_manifest(made).content["tokens"]["prompts"]) == {"en", "es"}


def test_axes_are_dynamic_and_named(exported):
    def axes(name, side):
        graph = onnx.load(exported / "onnx" / name).graph
        return {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in getattr(graph, side)
        }

    assert axes("encoder_model.onnx", "input")["input_features"] == ["batch_size", 80, "frames"]
    assert axes("frontend.onnx", "input")["waves"] == ["batch_size", "samples"]
    inputs = axes("decoder_model_merged.onnx", "input")
    assert {"input_ids", "encoder_hidden_states", "use_cache_branch", "past_key_values.0.decoder.key"} <= set(inputs)


def test_the_embedding_is_stored_once(exported):
    for name in ("decoder_model_merged.onnx", "decoder_model_merged_quantized.onnx"):
        model = onnx.load(exported / "onnx" / name)
        assert len([i for i in model.graph.initializer if list(i.dims) in ([263, 32], [32, 263])]) == 1


@pytest.mark.parametrize("seconds", [0.3, 3.0, 7.0, 9.5, 29.0])
def test_the_runtime_writes_torchs_tokens_at_every_length(exported, student, seconds):
    family = Whisper(student)
    model = family.load()
    wave = np.resize(open_corpus("prompts-en", "validation")[0].wave(), round(seconds * 16000))
    found = Recognizer(exported, "fp32", 2, vad=False).transcribe(wave, "es")
    states = encode(model, family.features([wave], seconds + 0.4)).detach()
    prompt = [family.prompt("es")]
    expected = greedy(
        model,
        states,
        prompt,
        [family.token_limit(seconds, "en")],
        family.eos_token_id,
        family.suppress_tokens,
        family.begin_suppress_tokens,
    )[0]
    assert list(found.tokens) == expected
    assert found.text == family.tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert set(found.stages_ms) == {"features", "encoder", "first_token", "rest", "detokenize"}


def test_the_language_can_be_found(exported, student):
    family = Whisper(student)
    wave = tone(1.0)
    states = encode(family.load(), family.features([wave], 1.4)).detach()
    recognizer = Recognizer(exported, vad=False)
    found = recognizer.transcribe(wave, "auto")
    assert found.language == family.languages(family.load(), states)[0][0]
    assert found.tokens == recognizer.transcribe(wave, found.language).tokens
    assert "language" in found.stages_ms


def test_every_precision_transcribes(exported):
    assert Recognizer(exported, "int8", vad=False).transcribe(tone(1.0)).tokens


def test_the_bundles_own_runtime_runs_alone_and_without_torch(exported, tmp_path):
    write_wav(tmp_path / "a.wav", tone(0.5))
    script = (
        "import sys; sys.path.insert(0, '.'); import edge; r = edge.Recognizer('.', vad=False);"
        f"print(repr(r.transcribe(edge.read_wav({str(tmp_path / 'a.wav')!r})).tokens));"
        "assert not {'torch', 'transformers', 'workbench', 'export'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", script], cwd=exported, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = Recognizer(exported, vad=False).transcribe(read_wav(tmp_path / "a.wav")).tokens
    assert done.stdout.strip() == repr(expected)


@pytest.mark.parametrize(
    "first", ["import sys; sys.path.insert(0, '.'); import edge", "import workbench", "import export.edge"]
)
def test_onnxruntime_writes_to_nobody(exported, tmp_path, first):
    """Its telemetry leaves the number of its session in the folder for temporary files."""
    code = f"{first}; import onnxruntime as o; o.InferenceSession('onnx/frontend.onnx', providers=['CPUExecutionProvider'])"
    told = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    told.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-B", "-c", code], cwd=exported, env=told, check=True)
    assert list(tmp_path.iterdir()) == []


def test_the_bundles_command_line(exported, tmp_path):
    write_wav(tmp_path / "a.wav", tone(0.5))
    run = [
        sys.executable,
        "-B",
        "-m",
        "edge",
        "--no-vad",
        "--timings",
        str(tmp_path / "a.wav"),
        str(tmp_path / "none.wav"),
    ]
    done = subprocess.run(run, cwd=exported, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "encoder" in done.stderr
    assert done.stderr.splitlines()[-1] == f"error: {tmp_path / 'none.wav'}: no such file"


def test_exporting_again_changes_nothing(exported, student):
    before = (exported / "bundle.json").stat().st_mtime_ns
    export_bundle(student, exported, ["fp32", "int8"], "tiny")
    assert (exported / "bundle.json").stat().st_mtime_ns == before


def test_a_bundle_with_another_runtime_inside_is_exported_anew(bundle, student):
    runtime = bundle / "edge" / "words.py"
    now = runtime.read_text()
    runtime.write_text("# as it was in an older version\n")
    write_manifest(bundle, open_manifest(bundle).content)  # with its checksum, as that version did
    export_bundle(student, bundle, ["fp32", "int8"], "tiny")
    assert runtime.read_text() == now


def test_a_bundle_that_another_exporter_wrote_is_exported_anew(bundle, student, caplog, monkeypatch):
    before = (bundle / "bundle.json").stat().st_mtime_ns
    monkeypatch.setattr("export.assembly.current.exporter_fingerprint", lambda: "another")
    with caplog.at_level("INFO", "workbench"):
        export_bundle(student, bundle, ["fp32", "int8"], "tiny")
    assert "was exported by another version of the workbench" in caplog.text
    assert (bundle / "bundle.json").stat().st_mtime_ns > before


def test_the_exporters_fingerprint_is_of_its_code(tmp_path, monkeypatch):
    copied = shutil.copytree(
        ROOT / "export", tmp_path / "export", ignore=shutil.ignore_patterns("node_modules", "__pycache__")
    )
    now = exporter_fingerprint()
    assert now == exporter_fingerprint()
    monkeypatch.setattr("export.assembly.current.EXPORT", copied)
    assert exporter_fingerprint.__wrapped__() == now
    (copied / "graphs" / "step.py").write_text("# another\n")
    assert exporter_fingerprint.__wrapped__() != now


def test_another_export_does_not_replace_a_bundle_unasked(bundle, student):
    with pytest.raises(UserError, match="--overwrite"):
        export_bundle(student, bundle, ["fp32"], "tiny")
    (bundle.parent / "other").mkdir()
    (bundle.parent / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a bundle"):
        export_bundle(student, bundle.parent / "other", ["fp32"], "tiny")
    assert (bundle.parent / "other" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["onnx/encoder_model.onnx", "vocab.json", "edge/__init__.py"])
def test_a_damaged_file_is_named(bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(bytes(content))
    with pytest.raises(UserError, match=rf"{name}.*damaged"):
        open_manifest(bundle, check=True)
    if name.startswith("onnx"):
        with pytest.raises(BundleError, match="damaged"):
            Recognizer(bundle, "fp32", vad=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 99}, "'format' is 99"),
        ({"precisions": None}, "field 'precisions' is missing"),
        ({"precisions": {"fp32": {"frontend": "../../etc/passwd", "encoder": "x", "decoder": "x"}}}, "points outside"),
    ],
)
def test_a_wrong_manifest_is_named(bundle, change, said):
    content = json.loads((bundle / "bundle.json").read_text()) | change
    (bundle / "bundle.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(BundleError, match=said):
        Recognizer(bundle, "fp32", vad=False)


def test_unknown_precisions_and_languages_are_named(exported, student, tmp_path):
    with pytest.raises(UserError, match="did you mean 'int8'"):
        export_bundle(student, tmp_path / "x", ["int9"])
    with pytest.raises(BundleError, match="no precision 'fp16'"):
        Recognizer(exported, "fp16", vad=False)
    with pytest.raises(BundleError, match="does not support language 'xx'"):
        Recognizer(exported, vad=False).transcribe(tone(1.0), "xx")


@pytest.mark.parametrize(
    "wave", [np.zeros(0, np.float32), np.zeros(31 * 16000, np.float32), np.full(16000, np.nan, np.float32)]
)
def test_waves_that_cannot_be_used_are_refused(exported, wave):
    with pytest.raises(AudioError):
        Recognizer(exported, vad=False).transcribe(wave)


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_wav_reading_agrees_with_the_workbenchs(tmp_path, bits, rate):
    import wave as wav

    samples = np.stack([tone(0.5, rate), tone(0.5, rate)], 1)
    pcm = np.round(samples * (2 ** (bits - 1) - 1)).astype("<i4")
    data = (
        (pcm + 128).astype(np.uint8).tobytes()
        if bits == 8
        else pcm.view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()
    )
    with wav.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((2, bits // 8, rate, 0, "NONE", ""))
        file.writeframes(data)
    ours, theirs = read_wav(tmp_path / "x.wav"), decode(tmp_path / "x.wav")
    length = min(len(ours), len(theirs)) - 200
    assert abs(len(ours) - len(theirs)) < 40
    assert np.abs(ours[200:length] - theirs[200:length]).max() < 0.02


def test_resampling_keeps_a_tone_and_drops_what_would_alias():
    assert np.abs(resample(tone(1.0, 48000), 48000)[500:-500]).max() == pytest.approx(0.3, abs=0.01)
    hiss = (0.3 * np.sin(2 * np.pi * 11000 * np.arange(48000) / 48000)).astype(np.float32)
    assert np.abs(resample(hiss, 48000)[500:-500]).max() < 0.003


def test_detokenizer_is_transformers(student):
    family = Whisper(student)
    for text in ("hello", "¿Qué tal?", "日本"):
        ids = family.tokenizer(text, add_special_tokens=False).input_ids
        assert Detokenizer(student / "vocab.json")([*ids, family.eos_token_id]) == text
    assert Detokenizer(student / "vocab.json")(family.tokenizer("é", add_special_tokens=False).input_ids[:1]) == "�"


def test_systems_are_timed_in_turn_in_processes_of_their_own(exported, tmp_path):
    write_wav(tmp_path / "a.wav", tone(1.0))
    systems = [System("a", "teacher", exported, "fp32"), System("b", "student", exported, "int8")]
    found = time_systems(systems, [(tmp_path / "a.wav", "en")] * 3, threads=1, warmup=1, repeats=3)
    for timed in found:
        assert len(timed.hypotheses) == len(timed.stages_ms) == 3
        assert timed.load_ms > 0
        assert 20 < timed.peak_rss_mb < 1000
        assert all(
            set(s) == {"decode", "detector", "features", "encoder", "first_token", "rest", "detokenize"}
            for s in timed.stages_ms
        )


def test_a_system_that_fails_says_why(exported, tmp_path):
    with pytest.raises(UserError, match=r"a: .*no such file"):
        time_systems([System("a", "teacher", exported, "fp32")], [(tmp_path / "none.wav", "en")], threads=1)


def test_verification_runs_the_bundles_runtime_against_torch(bundle, student, speech):
    clips = open_corpus(str(speech(3)), "validation")
    found = verify_bundle(bundle, student, clips, "speech", ["edge"], threads=1)
    assert [(c["client"], c["precision"]) for c in found["clients"]] == [("edge", "fp32"), ("edge", "int8")]
    assert found["clients"][0]["passed"]
    assert found["clients"][0]["tokens_equal"] == "3 of 3"
    assert open_manifest(bundle, check=True).content["verification"] == found


def test_a_client_that_crashes_fails_alone(bundle, student, speech):
    REFUSED["an output of another name"](bundle)
    found = verify_bundle(bundle, student, open_corpus(str(speech(2)), "validation"), "speech", ["edge"])
    assert not found["clients"][0]["passed"]
    assert "has no n_layer_cross_k" in found["clients"][0]["error"]


def test_verification_wants_the_right_checkpoint_and_a_known_client(bundle, student, tmp_path, speech):
    clips = open_corpus(str(speech(2)), "validation")
    other = shutil.copytree(student, tmp_path / "other")
    (other / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match="is not the checkpoint"):
        verify_bundle(bundle, other, clips, "x", ["edge"])
    with pytest.raises(UserError, match="did you mean 'optimum'"):
        verify_bundle(bundle, student, clips, "x", ["optimun"])


@pytest.mark.parametrize(
    ("words", "wrong", "passes"), [(50, 2, True), (50, 3, False), (1000, 5, True), (1000, 6, False)]
)
def test_few_clips_allow_two_words_and_many_half_a_point(words, wrong, passes):
    reference = " ".join("word" + "".join("abcdefghij"[int(digit)] for digit in str(i)) for i in range(words))
    said = reference.replace("word", "other", wrong)
    assert within_budget(score([reference], [said]), score([reference], [reference])) is passes


def test_a_language_spelled_in_bytes_has_room_for_its_tokens(exported):
    """Eight tokens a second cut off every Georgian clip of Common Voice."""
    manifest = open_manifest(exported)
    assert manifest.token_limit(2.0, "en") == 28
    decoding = manifest.content["decoding"] | {"tokens_per_second_of": {"ka": 48.0}, "most_tokens": 200}
    georgian = type(manifest)(manifest.folder, manifest.content | {"decoding": decoding})
    assert georgian.token_limit(2.0, "ka") == 108
    assert georgian.token_limit(2.0, "en") == 28
    assert georgian.token_limit(30.0, "ka") == 200
    older = {k: v for k, v in decoding.items() if k != "tokens_per_second_of"}
    assert type(manifest)(manifest.folder, manifest.content | {"decoding": older}).token_limit(2.0, "ka") == 28


def test_a_model_whose_graphs_fit_no_onnx_file_is_refused_before_the_work(student, tmp_path, monkeypatch):
    monkeypatch.setattr(export.assembly.build, "LARGEST", 1000)
    with pytest.raises(UserError, match=r"its encoder takes .* GB in fp32"):
        export_bundle(student, tmp_path / "bundle", ["int8"])
    assert not (tmp_path / "bundle").exists()
