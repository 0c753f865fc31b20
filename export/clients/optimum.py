"""Hugging Face Optimum: `ORTModelForSpeechSeq2Seq` with the bundle's own processor, as its users write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from export.clients.protocol import HUGGING_FACE, Transcription
from export.edge.bundle import Manifest, read_manifest
from export.linked import Linked
from workbench.audio import SAMPLE_RATE, Wave
from workbench.families.checkpoint import check_settings

EXACT = True
GRAPHS, FILES = HUGGING_FACE
REQUIRES, INSTALL = "optimum.onnxruntime", "pip install optimum optimum-onnx onnxruntime"


class OptimumClient:
    """A bundle in Optimum, read at true length where the bundle is length-adaptive."""

    def __init__(self, bundle: Path, precision: str, threads: int | None) -> None:
        import onnxruntime
        from optimum.version import __version__
        from transformers import WhisperProcessor

        manifest = read_manifest(bundle)
        check_settings(bundle)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        self.model: Any = _open_model(bundle, manifest, precision, options)
        self.processor: Any = WhisperProcessor.from_pretrained(bundle, trust_remote_code=False)
        self.manifest = manifest
        self.version = __version__

    def transcribe(self, wave: Wave, language: str) -> Transcription:
        """Transcribe one utterance at its own length plus the margin, or at 30 s where the model asks for that."""
        from transformers import GenerationMixin

        limit = self.manifest.token_limit(len(wave) / SAMPLE_RATE, language)
        if self.manifest.content["length"] == "padded":
            return self.transcribe_at_30_s(wave, language)
        margin = float(self.manifest.content["margin_seconds"])
        positions = -(-round(len(wave) + margin * SAMPLE_RATE) // 320)
        wave = np.pad(wave, (0, max(0, positions * 320 - len(wave))))
        features = self.processor(
            wave, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding="longest"
        ).input_features
        prompt = features.new_tensor([self.manifest.content["tokens"]["prompts"][language]]).long()
        # Whisper's own generate pads features to 30 s whatever it is told; the one it overrides takes them as they are
        ids = GenerationMixin.generate(self.model, features, decoder_input_ids=prompt, max_new_tokens=limit)
        return self._transcription(ids)

    def transcribe_at_30_s(self, wave: Wave, language: str) -> Transcription:
        """Transcribe as the tutorials do: the processor pads to 30 s, then Whisper's own generate."""
        limit = self.manifest.token_limit(len(wave) / SAMPLE_RATE, language)
        features = self.processor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        multilingual = self.model.generation_config.is_multilingual
        known = {"language": language, "task": "transcribe"} if multilingual else {}
        return self._transcription(self.model.generate(features, max_new_tokens=limit, **known))

    def _transcription(self, ids: Any) -> Transcription:
        tokens = tuple(i for i in ids[0].tolist() if self.manifest.is_text(i))
        return Transcription(self.processor.tokenizer.decode(tokens).strip(), tokens)


def _open_model(bundle: Path, manifest: Manifest, precision: str, options: Any) -> Any:
    """Load by the standard names, linked to this precision's graphs in a folder of their own.

    optimum-onnx 0.1.0 looks for a second decoder as soon as one is named, so a quantized merged decoder cannot be loaded
    by its name. It also looks for the generation config beside the graphs, so that one is handed over.
    """
    from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
    from transformers import GenerationConfig

    linked = Linked(manifest, precision, graphs=".")
    return ORTModelForSpeechSeq2Seq.from_pretrained(
        linked.folder,
        generation_config=GenerationConfig.from_pretrained(bundle),
        session_options=options,
        trust_remote_code=False,
    )


def open_client(bundle: Path, precision: str, threads: int | None) -> OptimumClient:
    """Open a bundle."""
    return OptimumClient(bundle, precision, threads)
