"""Hugging Face Optimum: `ORTModelForSpeechSeq2Seq` with the bundle's own processor, as in typical user code.

It runs in its own environment, since its ONNX package needs an older transformers than ours (export/optimum).
"""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

import numpy as np

from export.bundle.manifest import CHECKPOINT_FILES
from export.bundle.view import BundleView
from export.edge.bundle.manifest import read_manifest
from export.optimum.environment import environment
from export.verification.clients.protocol import HUGGING_FACE, Transcription
from export.verification.json_process import JsonProcess
from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.core.errors import UserError, system_error_message
from workbench.models.ctc.checkpoint import CLASSES as CTC_CLASSES
from workbench.models.whisper.loading.checkpoint import CLASSES, check_settings

EXACT = True
GRAPHS, FILES = HUGGING_FACE
CTC = ("ctc",), CHECKPOINT_FILES
SAMPLES_A_POSITION = 320  # of the encoder's output


@cache
def missing() -> str | None:
    """None if Optimum can run here, else the reason and a remedy. Creates its environment if needed; tried once per process."""
    try:
        environment()
    except (UserError, OSError) as error:
        return str(error) if isinstance(error, UserError) else system_error_message(error) or str(error)
    return None


class OptimumClient:
    """A bundle in Optimum; clips are unpadded if the bundle is length-adaptive, unless `always_30_s`."""

    def __init__(self, bundle: Path, precision: str, threads: int | None, always_30_s: bool = False) -> None:
        self.manifest = read_manifest(bundle)
        self.ctc = self.manifest.has_ctc_head
        check_settings(bundle, CTC_CLASSES if self.ctc else CLASSES)
        self.padded = always_30_s or self.manifest.content["length"] == "padded"
        # Optimum finds graphs only under their standard names
        self.view = BundleView(self.manifest, precision, graphs=".")
        places = (str(self.view.folder), str(bundle.resolve()))
        there = environment()
        command = there.command("transcribe.py", *places, str(threads or 0), *(["ctc"] if self.ctc else []))
        self.process = JsonProcess("Optimum's process", command, there.variables())
        self.version = str(self.process.ready["version"])

    def transcribe(self, wave: Wave, language: str) -> Transcription:
        """Transcribe one utterance at its own length plus the margin, or at 30 s."""
        if self.ctc:  # the graph adds the silence
            answer = self.process.ask(samples=_encoded(wave))
            return Transcription(str(answer["text"]).strip(), tuple(answer["tokens"]))
        how: dict[str, str | list[int]] = {"language": language}
        limit = self.manifest.token_limit(len(wave) / SAMPLE_RATE, language)
        if not self.padded:
            margin = float(self.manifest.content["margin_seconds"])
            positions = -(-round(len(wave) + margin * SAMPLE_RATE) // SAMPLES_A_POSITION)
            wave = np.pad(wave, (0, max(0, positions * SAMPLES_A_POSITION - len(wave))))
            how = {"prompt": self.manifest.content["tokens"]["prompts"][language]}
        ids = self.process.ask(samples=_encoded(wave), most=limit, **how)["tokens"]
        tokens = tuple(i for i in ids if self.manifest.is_text(i))
        return Transcription(str(self.process.ask(decode=tokens)["text"]).strip(), tokens)


def _encoded(wave: Wave) -> str:
    return base64.b64encode(np.asarray(wave, "<f4").tobytes()).decode()


def open_client(bundle: Path, precision: str, threads: int | None) -> OptimumClient:
    """Open a bundle."""
    return OptimumClient(bundle, precision, threads)
