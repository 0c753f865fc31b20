"""sherpa-onnx: `OfflineRecognizer.from_whisper`, the same in Python as in C++, Android, iOS or WebAssembly.

It computes features of its own, pads them with zeros, and writes at most six tokens for a second of what it pads to. Its frames
lie half a hop later than Whisper's, so every wave gets that much in front of it: see docs/decisions/0015-half-a-hop.md.
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
REQUIRES, INSTALL = "sherpa_onnx", "pip install sherpa-onnx"


def in_step(wave: Wave) -> Wave:
    """Put half a hop in front, the wave's own mirror image as at any edge, so that the frames lie where Whisper has them."""
    return np.concatenate([wave[HALF_A_HOP:0:-1], wave])


class SherpaClient:
    """A bundle in sherpa-onnx; the language is chosen when it is opened."""

    def __init__(self, bundle: Path, precision: str, threads: int | None) -> None:
        self.manifest, self.precision, self.threads = read_manifest(bundle), precision, threads
        self.version = version("sherpa-onnx")
        self.recognizers: dict[str, Any] = {}

    def transcribe(self, wave: Wave, language: str) -> Transcription:
        """Transcribe one utterance."""
        if language not in self.recognizers:
            self.recognizers[language] = self._open(language)
        recognizer = self.recognizers[language]
        stream = recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE, in_step(wave))
        recognizer.decode_stream(stream)
        return Transcription(str(stream.result.text).strip(), None)

    def _open(self, language: str) -> Any:
        package = importlib.import_module("sherpa_onnx")
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
