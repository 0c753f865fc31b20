"""Our torch-free runtime: the workbench's own copy, because the copy in a bundle may be untrusted code.

`workbench verify` reports where the two differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

from export.bundle.ctc import PIECES
from export.edge import Recognizer
from export.verification.clients.protocol import Transcription
from workbench.audio.decode import Wave

EXACT = True
GRAPHS, FILES = ("frontend", "encoder", "step"), ("vocab.json", "onnx/speech_detector.onnx")
CTC = ("ctc",), (PIECES, "onnx/speech_detector.onnx")
REQUIRES, INSTALL = "onnxruntime", "pip install onnxruntime"


class EdgeClient:
    """A bundle in the runtime."""

    def __init__(self, bundle: Path, precision: str, threads: int | None) -> None:
        # without the speech detector, like the torch reference
        self.recognizer = Recognizer(bundle, precision, threads, vad=False)
        if "torch" in sys.modules or "transformers" in sys.modules:
            raise RuntimeError("the edge runtime loaded torch or transformers")
        self.version = self._version()

    @staticmethod
    def _version() -> str:
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def transcribe(self, wave: Wave, language: str) -> Transcription:
        """Transcribe one utterance."""
        transcript = self.recognizer.transcribe(wave, language)
        return Transcription(transcript.text, transcript.tokens)


def open_client(bundle: Path, precision: str, threads: int | None) -> EdgeClient:
    """Open a bundle."""
    return EdgeClient(bundle, precision, threads)
