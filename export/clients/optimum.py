"""Hugging Face Optimum: `ORTModelForSpeechSeq2Seq` with the bundle's own processor, as its users write it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from export.clients.protocol import Transcription
from export.edge.bundle import Manifest, read_manifest
from workbench.audio import SAMPLE_RATE, Wave

REQUIRES, INSTALL = "optimum.onnxruntime", "pip install optimum optimum-onnx onnxruntime"


class OptimumClient:
    """A bundle in Optimum, read at true length where the bundle is length-adaptive."""

    def __init__(self, bundle: Path, precision: str, threads: int | None) -> None:
        import onnxruntime
        from optimum.version import __version__
        from transformers import WhisperProcessor

        manifest = read_manifest(bundle)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        self.model: Any = _open_model(bundle, manifest, precision, options)
        self.processor: Any = WhisperProcessor.from_pretrained(bundle)
        self.manifest = manifest
        self.true_length = manifest.content["length"] == "true"
        self.margin = float(manifest.content["margin_seconds"])
        self.skipped = len(next(iter(manifest.content["tokens"]["prompts"].values())))
        self.end = manifest.content["tokens"]["end"]
        self.version = __version__

    def transcribe(self, wave: Wave, language: str) -> Transcription:
        """Transcribe one utterance."""
        seconds = len(wave) / SAMPLE_RATE
        if self.true_length:
            positions = -(-round((seconds + self.margin) * SAMPLE_RATE) // 320)
            wave = np.pad(wave, (0, max(0, positions * 320 - len(wave))))
        features = self.processor(
            wave,
            sampling_rate=SAMPLE_RATE,
            return_tensors="pt",
            padding="longest" if self.true_length else "max_length",
        ).input_features
        known = {"language": language, "task": "transcribe"} if self.model.generation_config.is_multilingual else {}
        ids = self.model.generate(features, max_new_tokens=self.manifest.token_limit(seconds), **known)[0].tolist()
        special = set(self.processor.tokenizer.all_special_ids)
        tokens = tuple(i for i in ids if i not in special)
        return Transcription(self.processor.tokenizer.decode(tokens).strip(), tokens)


def _open_model(bundle: Path, manifest: Manifest, precision: str, options: Any) -> Any:
    """Load by the standard names, linked to this precision's graphs in a folder of their own.

    optimum-onnx 0.1.0 looks for a second decoder as soon as one is named, so a quantized merged decoder cannot be loaded
    by its name. It also looks for the generation config beside the graphs, so that one is handed over.
    """
    from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
    from transformers import GenerationConfig

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "config.json").symlink_to((bundle / "config.json").resolve())
        for part, name in (("encoder", "encoder_model.onnx"), ("decoder", "decoder_model_merged.onnx")):
            (folder / name).symlink_to(manifest.graph(part, precision))
        return ORTModelForSpeechSeq2Seq.from_pretrained(
            folder, generation_config=GenerationConfig.from_pretrained(bundle), session_options=options
        )


def open_client(bundle: Path, precision: str, threads: int | None) -> OptimumClient:
    """Open a bundle."""
    return OptimumClient(bundle, precision, threads)
