"""onnx-asr: `load_model("whisper", FOLDER)`, which pads to 30 s, suppresses no tokens and stops only at the context length."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from export.bundle.view import BundleView, is_found
from export.edge.bundle.manifest import read_manifest
from export.verification.clients.protocol import HUGGING_FACE, Transcription
from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.config.schemes import SUFFIXES

EXACT = True
GRAPHS, FILES = HUGGING_FACE
REQUIRES, INSTALL = "onnx_asr", "pip install onnx-asr"


class OnnxAsrClient:
    """A bundle in onnx-asr."""

    def __init__(self, bundle: Path, precision: str, threads: int | None) -> None:
        import onnxruntime

        package = importlib.import_module("onnx_asr")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        manifest = read_manifest(bundle)
        self.manifest = manifest
        # onnx-asr takes one suffix for both graphs
        self.view = None if is_found(manifest, precision, SUFFIXES) else BundleView(manifest, precision)
        folder = self.view.folder if self.view else bundle
        suffix = None if self.view else SUFFIXES[precision].removeprefix("_") or None
        self.model: Any = package.load_model("whisper", folder, quantization=suffix, sess_options=options)
        self.version = version("onnx-asr")
        self.written: Any = None
        decoding = self.model.asr._decoding  # onnx-asr returns only text; a wrapper records the decoded tokens

        def noting(*given: Any, **named: Any) -> Any:
            self.written = decoding(*given, **named)
            return self.written

        self.model.asr._decoding = noting

    def transcribe(self, wave: Wave, language: str) -> Transcription:
        """Transcribe one utterance."""
        try:
            text = self.model.recognize(np.asarray(wave, np.float32), sample_rate=SAMPLE_RATE, language=language)
        except KeyError as error:  # onnx-asr decodes every token as byte-level BPE, added words included
            added = ", ".join(map(repr, self.manifest.added.values()))
            raise RuntimeError(
                f"onnx-asr cannot decode the added words {added}: {error} is not in the byte alphabet"
            ) from None
        tokens = tuple(i for i in self.written[0].tolist() if self.manifest.is_text(i))
        return Transcription(str(text).strip(), tokens)


def open_client(bundle: Path, precision: str, threads: int | None) -> OnnxAsrClient:
    """Open a bundle."""
    return OnnxAsrClient(bundle, precision, threads)
