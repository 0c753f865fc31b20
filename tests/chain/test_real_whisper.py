"""What users rely on, with the real Whisper base: the built-in teacher, and the whole chain from the command line."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from export.assembly.alignment import alignment_clips, recordings
from export.assembly.build import export_bundle
from export.assembly.pack import pack
from export.edge import Recognizer
from export.optimum.environment import environment
from export.verification.clients import unavailable_reason
from export.verification.verify import verify_bundle
from workbench.audio.decode import write_wav
from workbench.config.shipped import FOLDER
from workbench.corpus import open_corpus
from workbench.evaluation.scoring import score
from workbench.models.resolve import resolve_teacher
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.passes import encode

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def teacher():
    return resolve_teacher("whisper-base")


def test_the_tokenizer_writes_what_whisper_writes(teacher):
    """Ids known from the published model; the copy in circulation with CTranslate2 splits " the" in two."""
    tokenizer = Whisper(teacher).tokenizer
    assert tokenizer(" the", add_special_tokens=False).input_ids == [264]
    assert tokenizer(" Hello, world!", add_special_tokens=False).input_ids == [2425, 11, 1002, 0]
    assert tokenizer.convert_tokens_to_ids(
        ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    ) == [50258, 50259, 50359, 50363]
    for text in (" the theatre that there", " Das ist größer.", " ¿Qué?", " 日本語"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text


@torch.no_grad()
def test_the_teacher_transcribes_in_plain_transformers(teacher):
    model = WhisperForConditionalGeneration.from_pretrained(teacher, dtype=torch.float32)
    processor = WhisperProcessor.from_pretrained(teacher)
    clips = [u for u in open_corpus("prompts-en", "validation") if 2 < u.seconds < 4][:4]
    features = processor([u.wave() for u in clips], sampling_rate=16000, return_tensors="pt").input_features
    texts = processor.batch_decode(model.generate(features, language="en", task="transcribe"), skip_special_tokens=True)
    assert score([u.text for u in clips], texts).wer < 15
    # ours is the same decoder: same text, clip by clip
    family = Whisper(teacher)
    states = encode(model, family.features([u.wave() for u in clips], 30.0))
    ours = family.decode(model, states, [u.seconds for u in clips], ["en"] * len(clips))
    assert [t.strip() for t in texts] == ours


@torch.no_grad()
def test_the_english_only_teacher_transcribes():
    family = Whisper(resolve_teacher("whisper-tiny.en"))
    clips = [u for u in open_corpus("prompts-en", "validation") if 2 < u.seconds < 4][:8]
    states = encode(family.load(), family.features([u.wave() for u in clips], 30.0))
    texts = family.decode(family.load(), states, [u.seconds for u in clips], ["en"] * len(clips))
    assert score([u.text for u in clips], texts).wer < 15
    assert family.prompt("en") == [50257, 50362]  # without a language, which its tokenizer could spell


@pytest.fixture(scope="module")
def exported_teacher(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "bundle"
    return export_bundle(teacher, folder, ["fp32", "int8"], aligned=alignment_clips("prompts-en"))


def test_the_card_says_how_each_runtime_is_called(exported_teacher, tmp_path):
    folder = shutil.copytree(exported_teacher, tmp_path / "device")
    clip = next(u for u in open_corpus("prompts-en", "validation") if 2 < u.seconds < 4)
    write_wav(folder / "speech.wav", clip.wave())
    programs = _programs(folder)
    assert len(programs) == 3  # onnx-asr, sherpa-onnx and Optimum
    if unavailable_reason("optimum"):  # without a network the others are still to agree
        programs = [program for program in programs if "optimum" not in program]
    said = [_output([sys.executable, "-c", program], folder) for program in programs]
    assert len(set(said)) == 1, said
    assert score([clip.text], said[:1]).wer < 30


@pytest.mark.parametrize("client", ["edge", "onnx_asr", "optimum", "sherpa_onnx", "transformers_js"])
def test_the_part_for_a_runtime_in_int8_runs_as_its_card_says(exported_teacher, teacher, tmp_path, client):
    if remedy := unavailable_reason(client):
        pytest.skip(remedy)
    folder = pack(exported_teacher, tmp_path / "device", client, "int8")
    clips = [u for u in open_corpus("prompts-en", "validation") if 2 < u.seconds < 4][:4]
    found = verify_bundle(folder, teacher, clips, "four clips", [client])
    assert [c["passed"] for c in found["clients"]] == [True]
    write_wav(folder / "speech.wav", clips[0].wave())
    for program in _programs(folder):
        assert score([clips[0].text], [_output([sys.executable, "-c", program], folder)]).wer < 30


def _programs(folder):
    """The Python programs of a bundle's card."""
    blocks = (folder / "MODEL_CARD.md").read_text().split("\n\n")
    return [textwrap.dedent(b) for b in blocks if b.startswith(("    import ", "    from ")) and "const" not in b]


def test_words_are_timed_where_they_were_said(exported_teacher):
    """On validation clips joined with pauses, by heads chosen on training clips: docs/decisions/0016-word-times.md."""
    recognizer = Recognizer(exported_teacher)
    assert recognizer.manifest.content["alignment"]["error_seconds"] < 0.3
    late = []
    for one in recordings(open_corpus("prompts-en", "validation"))[:4]:
        said = recognizer.transcribe(one.wave, one.language, words=True)
        counts = [len(text.split()) for text in one.texts]
        if len(said.words) == sum(counts):  # or it understood something else
            firsts = np.cumsum([0, *counts[:-1]])
            late += [said.words[k].start - begin for k, (begin, _) in zip(firsts[1:], one.times[1:], strict=True)]
    assert len(late) >= 4
    assert np.median(np.abs(late)) < 0.15


def _output(command, folder):
    """What a program prints; one that uses Optimum runs where that does."""
    variables = environment().variables() if "optimum" in command[-1] else None
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=variables)
    return done.stdout.strip()


def test_the_whole_chain_from_the_command_line(tmp_path):
    """A run too short to learn much, through every command, with the real teacher."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run, bundle = tmp_path / "run", tmp_path / "run" / "bundle"

    def workbench(*args):
        done = subprocess.run(
            [sys.executable, "-m", "workbench", *map(str, args)], capture_output=True, text=True, check=False, env=env
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    short = ["max_clips=6", "stages.encoder.epochs=1", "stages.decoder.epochs=1", "student.decoder_layers=2"]
    workbench("distill", "quickstart", f"output={run}", *short)
    student = WhisperForConditionalGeneration.from_pretrained(run / "student")
    assert student.config.decoder_layers == 2
    workbench("export", run / "student", "-o", bundle, "--no-verify")
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["length"] == "true"
    assert max(manifest["parity"]["fp32"].values()) < 2e-3
    shown = workbench("measure", bundle, "--against", "whisper-base", "-o", run, "--clips", 6)
    assert "whisper-base (teacher)" in shown
    report = json.loads((run / "report.json").read_text())
    teacher, fp32, int8 = report["systems"]
    assert teacher["wer"] < 20
    assert int8["size_mb"] < 0.4 * fp32["size_mb"]
    assert (
        fp32["stages_ms"]["encoder"] < teacher["stages_ms"]["encoder"]
    )  # true length against 30 s: a factor of about ten
    copied = shutil.copytree(bundle, tmp_path / "device")
    clip = tmp_path / "clip.wav"
    write_wav(clip, open_corpus("prompts-en", "test")[0].wave())
    assert _output([sys.executable, "-B", "-m", "edge", "--precision", "int8", str(clip)], copied).startswith(str(clip))


def test_the_teachers_own_export_is_right_in_every_client(teacher, tmp_path):
    """In fp32 token by token, in int8 within the WER budget, each client in a process of its own."""
    from export.assembly.build import export_bundle
    from export.verification.clients import known_clients, unavailable_reason
    from export.verification.verify import verify_bundle

    bundle = export_bundle(teacher, tmp_path / "bundle", ["fp32", "int8"])
    clips = [u for u in open_corpus("prompts-en", "validation") if 2 < u.seconds < 4][:6]
    found = verify_bundle(bundle, teacher, clips, "prompts-en validation")
    there = {name for name in known_clients() if not unavailable_reason(name)}
    assert {c["client"] for c in found["clients"]} == there
    fetched = {"transformers_js", "optimum", "optimum_30s"}  # all others come with the tests' own requirements
    assert there >= set(known_clients()) - fetched
    for client in found["clients"]:
        assert client["passed"], client
        if client["precision"] == "fp32":
            assert client["tokens_equal"] == "6 of 6", client
        assert client["wer_torch"] < 15


def test_the_second_source_is_the_same_teacher(teacher, cache, monkeypatch):
    """Should the first packages go, the second give the same weights and the same tokens."""
    from workbench.models import resolve as teachers

    built_in = teachers.BUILT_IN["whisper-base"]
    monkeypatch.setitem(teachers.BUILT_IN, "whisper-base", dataclasses.replace(built_in, sources=built_in.sources[1:]))
    other = resolve_teacher("whisper-base")
    assert other != teacher
    assert (other / "model.safetensors").read_bytes() == (teacher / "model.safetensors").read_bytes()
    for text in (" the theatre that there", " Das ist größer.", " 日本語 25 %"):
        ids = [Whisper(folder).tokenizer(text).input_ids for folder in (teacher, other)]
        assert ids[0] == ids[1]


def test_a_narrow_student_with_learnt_weights_writes_the_same_in_every_client(tmp_path):
    """Trained on the tokens its corpus needs, by look-ahead; saved, it is a Whisper like any other."""
    from export.assembly.build import export_bundle
    from export.verification.verify import verify_bundle
    from workbench.config.recipe import load_recipe
    from workbench.training.trainer import distill

    almkd = "stages.decoder.weighting={name: almkd, start_epoch: 0, update_every: 1, steps_per_update: 2}"
    short = ["max_clips=8", "stages.encoder.epochs=1", "stages.decoder.epochs=2", almkd]
    more = ["student.decoder_layers=[0,5]", "student.vocabulary=corpus", f"output={tmp_path / 'run'}"]
    student = distill(load_recipe(FOLDER / "quickstart.yaml", [*short, *more]))
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert 1_000 < scores["student"]["vocabulary"] < 6_000
    bundle = export_bundle(student, tmp_path / "bundle", ["fp32"])
    clips = open_corpus("prompts-en", "validation", 4)
    # so young a student hangs by a hair; these compute the very features that torch does
    clients = [
        name for name in ("edge", "optimum", "optimum_30s") if not unavailable_reason(name)
    ]  # the latter are fetched
    found = verify_bundle(bundle, student, clips, "prompts-en validation", clients)
    assert [client["tokens_equal"] for client in found["clients"]] == ["4 of 4"] * len(clients), found
