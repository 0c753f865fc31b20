"""Tiny random models for logic; the real Whisper base, fetched once, for what users rely on."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).parents[1]
SPECIALS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|es|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|notimestamps|>",
]


DECODER = {"trainable": "decoder", "epochs": 2, "learning_rate": 1e-3, "batch_seconds": 6.0,
           "weighting": {"name": "adakd", "k0": 2, "k1": -1}}  # fmt: skip
ENCODER = {
    "trainable": "encoder",
    "epochs": 1,
    "learning_rate": 1e-3,
    "batch_seconds": 6.0,
    "encoder_matching": 1.0,
    "decoder_losses": False,
}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Whisper with a byte tokenizer, as a transformers checkpoint folder."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    from export.edge.bundle.tokens import byte_alphabet
    from workbench.models.whisper.loading.tokens import save_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "tiny-teacher"
    folder.mkdir()
    vocabulary = {token: i for i, token in enumerate(sorted(byte_alphabet()))}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.save(str(folder / "source.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=256 + len(SPECIALS), d_model=32, encoder_layers=3, decoder_layers=3, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_target_positions=128,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=end + 1,
        suppress_tokens=None, begin_suppress_tokens=None, init_std=0.3,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config._from_model_config = False
    model.generation_config.suppress_tokens = [3]
    model.generation_config.begin_suppress_tokens = [end]
    model.generation_config.is_multilingual = True
    model.generation_config.alignment_heads = [[0, 1], [2, 0]]
    save_tokenizer(folder / "source.json", model, folder)
    (folder / "source.json").unlink()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def student(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, marked as a length-adaptive student."""
    folder = tmp_path_factory.mktemp("run") / "student"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "workbench.json").write_text(json.dumps({"schema": 1, "length": "true", "margin_seconds": 0.4}))
    return folder


@pytest.fixture(scope="session")
def exported(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, in fp32 and int8."""
    from export.assembly.build import export_bundle

    return export_bundle(student, tmp_path_factory.mktemp("bundles") / "tiny", ["fp32", "int8"], "tiny")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def slow_but(fast: Sequence[Any], values: Iterable[Any]) -> list[Any]:
    """Values of a parametrized test, of which some run with the fast tests and all others with the slow ones."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


@functools.cache
def built_in_speech(split: str) -> list[Any]:
    """A split of the built-in speech, read once."""
    from workbench.corpus import open_corpus

    return open_corpus("prompts-en", split)


@pytest.fixture
def speech(tmp_path: Path) -> Callable[..., Path]:
    """Factory of a manifest with a few clips of the built-in speech per split."""

    def make(clips: int = 6, longest: float = 2.5) -> Path:
        from workbench.corpus import SPLITS

        manifest = tmp_path / "speech.jsonl"
        rows = []
        for split in SPLITS:
            short = [u for u in built_in_speech(split) if 1.0 < u.seconds < longest][:clips]
            rows += [
                {"id": u.id, "audio": str(u.audio), "text": u.text, "duration": u.seconds, "split": split}
                for u in short
            ]
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return manifest

    return make


@pytest.fixture
def recipe(tiny_checkpoint: Path, cache: Path, speech: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """Factory of recipes for the tiny checkpoint."""
    from accelerate.state import AcceleratorState

    from workbench.config.recipe import parse_recipe

    AcceleratorState._reset_state(reset_partial_state=True)  # one process holds one; here many runs share a process

    def make(name="run", **changes):
        content = {
            "output": str(tmp_path / name), "teacher": str(tiny_checkpoint), "corpus": str(speech()),
            "student": {"decoder_layers": [0, 2]},
            "targets": {"top_k": 8, "allow_large_tail": True},  # a random teacher is unsure: 8 of its 256 tokens hold a third
            "stages": {"encoder": ENCODER, "decoder": DECODER}, **changes,
        }  # fmt: skip
        return parse_recipe(content, "test")

    return make


def with_more_tokens(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint whose vocabulary is eight tokens larger."""
    from transformers import WhisperForConditionalGeneration

    other = WhisperForConditionalGeneration.from_pretrained(checkpoint)
    other.resize_token_embeddings(other.config.vocab_size + 8)
    other.save_pretrained(folder)
    for path in checkpoint.glob("*.json"):
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def load_script(name: str) -> Any:
    """The module of a file in scripts/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tone(seconds: float, rate: int = 16_000, amplitude: float = 0.3) -> np.ndarray:
    """A 440 Hz sine."""
    return (amplitude * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode_for_decoder(model: Any, features: Any) -> None:
    """Run in torch what the encoder's graph computes, so that a FlopCounterMode can count it."""
    from workbench.models.whisper.forward.passes import encode

    states = encode(model, features)
    for layer in model.model.decoder.layers:
        layer.encoder_attn.k_proj(states)
        layer.encoder_attn.v_proj(states)


def until(met, seconds=60):
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


@pytest.fixture
def quick_streams(monkeypatch):
    """Without the five seconds that datasets waits at the end of a stream of several parts, for threads that a test does not have."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture
def copies(tmp_path, monkeypatch, quick_streams):
    """Writes datasets of the hub, as OWNER/NAME, into the folder of copies that the environment names."""
    from tests.hub_copies import write_copy

    monkeypatch.setenv("WORKBENCH_DATASETS", str(tmp_path / "copies"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return lambda name, files, configs=None: write_copy(tmp_path / "copies" / name, files, configs)


def of_an_earlier_version(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle whose decoder gives the logits of the last position alone, as it once did."""
    import onnx

    shutil.copytree(bundle, folder)
    path = folder / "onnx" / "step_decoder.onnx"
    model = onnx.load(path)
    model.graph.input.remove(next(i for i in model.graph.input if i.name == "project_from"))
    onnx.save(model, path)
    return folder
