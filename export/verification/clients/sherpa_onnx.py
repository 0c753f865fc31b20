"""sherpa-onnx: `OfflineRecognizer.from_whisper`, which behaves the same in Python, C++, Android, iOS and WebAssembly.

It computes its own features, pads them with zeros, and decodes at most six tokens per second of padded length. Its frames lie half a hop
later than Whisper's, so half a hop is prepended to every wave: see docs/decisions/0015-half-a-hop.md.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from export.edge.bundle.manifest import read_manifest
from export.verification.clients.protocol import Transcription
from workbench.audio.decode import SAMPLE_RATE, Wave

EXACT = True
HALF_A_HOP = 80  # samples
GRAPHS, FILES = ("encoder", "sherpa"), ("tokens.txt",)
CTC = ("ctc",), ("tokens.txt",)
REQUIRES, INSTALL = "sherpa_onnx", "pip install sherpa-onnx"


def in_step(wave: Wave) -> Wave:
    """Prepend half a hop, mirrored from the wave as in reflect padding, so that the frames align with Whisper's."""
    return np.concatenate([wave[HALF_A_HOP:0:-1], wave])


class SherpaClient:
    """A bundle in sherpa-onnx; one recognizer per language, since the language is fixed when opening."""

    def __init__(self, bundle: Path, precision: str, threads: int | None) -> None:
        self.manifest, self.precision, self.threads = read_manifest(bundle), precision, threads
        self.version = version("sherpa-onnx")
        self.ctc = self.manifest.has_ctc_head
        self.recognizers: dict[str, Any] = {}

    def transcribe(self, wave: Wave, language: str) -> Transcription:
        """Transcribe one utterance."""
        if language not in self.recognizers:
            self.recognizers[language] = self._open(language)
        recognizer = self.recognizers[language]
        stream = recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE, wave if self.ctc else in_step(wave))
        recognizer.decode_stream(stream)
        return Transcription(str(stream.result.text).strip(), None)

    def _open(self, language: str) -> Any:
        package = importlib.import_module("sherpa_onnx")
        if self.ctc:
            return package.OfflineRecognizer.from_omnilingual_asr_ctc(
                model=str(self.manifest.graph("ctc", self.precision)),
                tokens=str(self.manifest.path("tokens.txt")),
                num_threads=self.threads or 1,
            )
        return package.OfflineRecognizer.from_whisper(
            encoder=str(self.manifest.graph("encoder", self.precision)),
            decoder=str(self.manifest.graph("sherpa", self.precision)),
            tokens=str(self.manifest.path("tokens.txt")),
            language=language,
            num_threads=self.threads or 1,
        )


def open_client(bundle: Path, precision: str, threads: int | None) -> SherpaClient:
    """Open a bundle."""
    return SherpaClient(bundle, precision, threads)
