"""transformers.js in Node, which is what runs in browsers, too: Whisper's `generate` with the bundle's own processor, padded to 30 s."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from export.clients.protocol import HUGGING_FACE, Transcription
from export.edge.bundle import read_manifest
from export.linked import Linked, is_found
from workbench.audio import SAMPLE_RATE, Wave
from workbench.children import ending_with_us

EXACT = True
GRAPHS, FILES = HUGGING_FACE
FOLDER = Path(__file__).parent / "node"
INSTALL = f"install Node 18 or later, then: npm ci --ignore-scripts --prefix {FOLDER}"
DTYPES = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "q4": "q4"}  # its names of precisions, by which it finds files


def installed() -> bool:
    """Whether Node and the package are there."""
    return shutil.which("node") is not None and (FOLDER / "node_modules" / "@huggingface" / "transformers").is_dir()


class TransformersJsClient:
    """A bundle in a Node process of its own, asked a clip at a time."""

    def __init__(self, bundle: Path, precision: str, threads: int | None) -> None:
        self.manifest = read_manifest(bundle)
        self.linked = None if is_found(self.manifest, precision, DTYPES) else Linked(self.manifest, precision)
        folder = self.linked.folder if self.linked else bundle.resolve()
        command = [
            "node",
            str(FOLDER / "transcribe.mjs"),
            str(folder),
            "fp32" if self.linked else DTYPES[precision],
            str(threads or 1),
        ]
        self.process = subprocess.Popen(
            ending_with_us(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.version = str(self._answer()["version"])

    def transcribe(self, wave: Wave, language: str) -> Transcription:
        """Transcribe one utterance."""
        samples = base64.b64encode(np.asarray(wave, "<f4").tobytes()).decode()
        limit = self.manifest.token_limit(len(wave) / SAMPLE_RATE, language)
        assert self.process.stdin is not None  # noqa: S101  it is a pipe
        self.process.stdin.write(json.dumps({"samples": samples, "language": language, "most": limit}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        tokens = tuple(i for i in answer["tokens"] if self.manifest.is_text(i))
        return Transcription(str(answer["text"]).strip(), tokens)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None  # noqa: S101  it is a pipe
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"node ended with exit status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def open_client(bundle: Path, precision: str, threads: int | None) -> TransformersJsClient:
    """Open a bundle."""
    return TransformersJsClient(bundle, precision, threads)
