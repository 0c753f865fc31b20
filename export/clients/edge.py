"""Our torch-free runtime, imported from the bundle itself, so that what travels is what is verified."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

from export.clients.protocol import Transcription
from workbench.audio import Wave

EXACT = True
GRAPHS, FILES = ("frontend", "encoder", "step"), ("vocab.json", "onnx/speech_detector.onnx")
REQUIRES, INSTALL = "onnxruntime", "pip install onnxruntime"


class EdgeClient:
    """The `edge` package that lies in the bundle."""

    def __init__(self, bundle: Path, precision: str, threads: int | None) -> None:
        sys.path.insert(0, str(bundle.resolve()))
        edge = importlib.import_module("edge")
        if "torch" in sys.modules or "transformers" in sys.modules:
            raise RuntimeError("the edge runtime loaded torch or transformers")
        # like torch, which is compared with, it is to write whatever the decoder says; a runtime of an older bundle knows no detector
        known = inspect.signature(edge.Recognizer.__init__).parameters
        self.recognizer = edge.Recognizer(bundle, precision, threads, **({"vad": False} if "vad" in known else {}))
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
