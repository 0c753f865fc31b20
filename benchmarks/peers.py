"""The recognisers that a bundle is compared with, each opened as its own documentation says, greedily or with its default beam.

All get the same samples and threads; what they read from disk is prepared once, in a folder that is kept.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from types import ModuleType

import numpy as np

from export.edge.decoding.sessions import session_options  # as ours: theirs are two sessions, too
from export.optimum.environment import environment
from workbench.audio.decode import SAMPLE_RATE, Wave

Transcribe = Callable[[Wave], str]
BASE, TINY = "whisper-base", "whisper-tiny.en"
AUDIO_CTX_STEP = 64  # whisper.cpp's users round the encoder's positions up to a multiple of that


@dataclass(frozen=True)
class Peer:
    """A system: the package, what it reads, and how it is opened."""

    package: str
    source: str  # what `prepare` makes
    open: Callable[[Path, int], Transcribe]
    apart: bool = False  # in Optimum's environment

    def packages(self) -> Path | None:
        """The folder of packages that its process wants before those that are installed; None for those alone."""
        return environment().folder if self.apart else None


def prepare(folder: Path, sources: Container[str]) -> dict[str, Path]:
    """Make what some peers read, unless it is there: CTranslate2 folders, the plain export, a ggml file, Moonshine's model."""
    from ggml import write_ggml

    from workbench.core.atomic import atomic_folder
    from workbench.models.resolve import fetch_ctranslate2, resolve_teacher

    made = {"ct2_base": BASE, "ct2_tiny": TINY, "plain": BASE, "ggml": BASE, "moonshine": ""}
    for name, model in made.items():
        if name not in sources or (folder / name).is_dir():
            continue
        with atomic_folder(folder / name) as new:
            if name.startswith("ct2"):
                _complete(fetch_ctranslate2(model, new))
            elif name == "moonshine":
                shutil.copytree(_moonshine().get_model_path("tiny-en"), new, dirs_exist_ok=True)
            elif name == "plain":
                _plain_export(resolve_teacher(model), new)
            else:
                write_ggml(resolve_teacher(model), new / "model.ggml")
    return {name: folder / name for name in made}


def size_mb(source: Path) -> float:
    """Megabytes (10^6 bytes) of the weights that a peer loads, as stored."""
    kept = (
        "model.bin",
        "model.ggml",
        "encoder_model.onnx",
        "decoder_model_merged.onnx",
        "tokenizer.json",
        "vocab.json",
        "encoder_model.ort",
        "decoder_model_merged.ort",
        "tokenizer.bin",
    )
    return sum(p.stat().st_size for p in source.iterdir() if p.name in kept) / 1e6


def faster_whisper(beams: int) -> Callable[[Path, int], Transcribe]:
    """faster-whisper in int8."""

    def opened(source: Path, threads: int) -> Transcribe:
        model = importlib.import_module("faster_whisper").WhisperModel(
            str(source), device="cpu", compute_type="int8", cpu_threads=threads
        )
        return lambda wave: "".join(s.text for s in model.transcribe(wave, language="en", beam_size=beams)[0])

    return opened


def onnx_asr(source: Path, threads: int) -> Transcribe:
    """onnx-asr on the plain export, fp32."""
    model = importlib.import_module("onnx_asr").load_model("whisper", source, sess_options=session_options(threads))
    return lambda wave: str(model.recognize(wave, sample_rate=SAMPLE_RATE, language="en"))


def optimum(source: Path, threads: int) -> Transcribe:
    """Optimum on the plain export, fp32."""
    from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
    from transformers import WhisperProcessor

    model = ORTModelForSpeechSeq2Seq.from_pretrained(
        source, session_options=session_options(threads), trust_remote_code=False
    )
    processor = WhisperProcessor.from_pretrained(source, trust_remote_code=False)

    def transcribe(wave: Wave) -> str:
        features = processor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        ids = model.generate(features, language="en", task="transcribe")
        return str(processor.batch_decode(ids, skip_special_tokens=True)[0])

    return transcribe


def whisper_cpp(shortened: bool) -> Callable[[Path, int], Transcribe]:
    """whisper.cpp in fp16, at 30 s or with the encoder shortened to the clip (`audio_ctx`)."""

    def opened(source: Path, threads: int) -> Transcribe:
        model = importlib.import_module("pywhispercpp.model").Model(
            str(source / "model.ggml"), n_threads=threads, redirect_whispercpp_logs_to=None
        )

        def transcribe(wave: Wave) -> str:
            positions = int(np.ceil(len(wave) / SAMPLE_RATE * 50)) + AUDIO_CTX_STEP // 2
            context = min(1500, -(-positions // AUDIO_CTX_STEP) * AUDIO_CTX_STEP) if shortened else 0
            found = model.transcribe(wave, language="en", audio_ctx=context, print_progress=False)
            return " ".join(s.text for s in found)

        return transcribe

    return opened


def moonshine(source: Path, threads: int) -> Transcribe:
    """Moonshine tiny, in 8 bits, with the speech detector that its package has on; it has no option for threads, so it gets as many cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    package = _moonshine()
    model = package.Transcriber(str(source), package.ModelArch.TINY)
    return lambda wave: " ".join(
        line.text for line in model.transcribe_without_streaming(wave.tolist(), SAMPLE_RATE).lines
    )


def _moonshine() -> ModuleType:
    # its import opens the microphone's library, which a server lacks
    sys.modules.setdefault("sounddevice", ModuleType("sounddevice"))
    return importlib.import_module("moonshine_voice")


PEERS = {
    "faster-whisper base int8, greedy": Peer("faster-whisper", "ct2_base", faster_whisper(1)),
    "faster-whisper base int8, beam 5": Peer("faster-whisper", "ct2_base", faster_whisper(5)),
    "faster-whisper tiny.en int8, greedy": Peer("faster-whisper", "ct2_tiny", faster_whisper(1)),
    "faster-whisper tiny.en int8, beam 5": Peer("faster-whisper", "ct2_tiny", faster_whisper(5)),
    "onnx-asr base, plain export": Peer("onnx-asr", "plain", onnx_asr),
    "Optimum base, plain export": Peer("optimum-onnx", "plain", optimum, apart=True),
    "whisper.cpp base fp16": Peer("pywhispercpp", "ggml", whisper_cpp(False)),
    "whisper.cpp base fp16, audio_ctx": Peer("pywhispercpp", "ggml", whisper_cpp(True)),
    "Moonshine tiny, 8 bits": Peer("moonshine-voice", "moonshine", moonshine),
}


def versions(peers: Iterable[Peer]) -> dict[str, str]:
    """Version of every package that is compared; exits with a line where one is not installed."""
    try:
        return {peer.package: _version(peer) for peer in peers}
    except PackageNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed; pip install -c constraints.txt -e '.[peers]'")


def _version(peer: Peer) -> str:
    packages = peer.packages()
    if packages is None:
        return version(peer.package)
    return next(iter(distributions(name=peer.package, path=[str(packages)]))).version


def _complete(folder: Path) -> None:
    """CTranslate2 wants a list of all tokens, timestamps too, and tokenizer.json has no timestamps."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = content["model"]["vocab"] | {t["content"]: t["id"] for t in content["added_tokens"]}
    tokens = sorted(ids, key=lambda token: int(ids[token]))
    tokens += [f"<|{0.02 * i:.2f}|>" for i in range(1501) if f"<|{0.02 * i:.2f}|>" not in ids]
    (folder / "vocabulary.json").write_text(json.dumps(tokens), encoding="utf-8")


def _plain_export(checkpoint: Path, folder: Path) -> None:
    """What `optimum-cli export onnx` writes."""
    there = environment()
    code = (
        "import sys; from optimum.exporters.onnx import main_export; "
        "main_export(sys.argv[1], sys.argv[2], task='automatic-speech-recognition-with-past')"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(checkpoint), str(folder)], check=True, env=there.variables())
