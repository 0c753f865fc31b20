"""transformers.js in Node, the same library as in browsers: Whisper's `generate` with the bundle's own processor, padded to 30 s."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import numpy as np

from export.bundle.manifest import CHECKPOINT_FILES
from export.bundle.view import BundleView, is_found
from export.edge.bundle.manifest import read_manifest
from export.verification.clients.protocol import HUGGING_FACE, Transcription
from export.verification.json_process import JsonProcess
from workbench.audio.decode import SAMPLE_RATE, Wave

EXACT = True
GRAPHS, FILES = HUGGING_FACE
CTC = ("ctc",), CHECKPOINT_FILES
FOLDER = Path(__file__).parent / "node"
INSTALL = f"install Node 18 or later, then: npm ci --ignore-scripts --prefix {FOLDER}"
DTYPES = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "q8",
    "q4": "q4",
}  # its names for precisions, from which it derives file names


def installed() -> bool:
    """Whether Node and the package are installed."""
    return shutil.which("node") is not None and (FOLDER / "node_modules" / "@huggingface" / "transformers").is_dir()


class TransformersJsClient:
    """A bundle in its own Node process, one clip per request."""

    def __init__(self, bundle: Path, precision: str, threads: int | None) -> None:
        self.manifest = read_manifest(bundle)
        self.view = None if is_found(self.manifest, precision, DTYPES) else BundleView(self.manifest, precision)
        folder = self.view.folder if self.view else bundle.resolve()
        command = [
            "node",
            str(FOLDER / "transcribe.mjs"),
            str(folder),
            "fp32" if self.view else DTYPES[precision],
            str(threads or 1),
        ]
        self.ctc = self.manifest.has_ctc_head
        self.node = JsonProcess("node", [*command, "ctc"] if self.ctc else command)
        self.version = str(self.node.ready["version"])

    def transcribe(self, wave: Wave, language: str) -> Transcription:
        """Transcribe one utterance."""
        samples = base64.b64encode(np.asarray(wave, "<f4").tobytes()).decode()
        limit = self.manifest.token_limit(len(wave) / SAMPLE_RATE, language)
        answer = self.node.ask(samples=samples, language=language, most=limit)
        tokens = tuple(answer["tokens"]) if self.ctc else tuple(i for i in answer["tokens"] if self.manifest.is_text(i))
        return Transcription(str(answer["text"]).strip(), tokens)


def open_client(bundle: Path, precision: str, threads: int | None) -> TransformersJsClient:
    """Open a bundle."""
    return TransformersJsClient(bundle, precision, threads)
