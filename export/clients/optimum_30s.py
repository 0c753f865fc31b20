"""Hugging Face Optimum as the tutorials use it: every clip padded to 30 s, Whisper's own `generate`.

A length-adaptive student was not trained to hear so much silence; its encoder's graph cuts it off (export/silence.py).
"""

from __future__ import annotations

from pathlib import Path

from export.clients.optimum import FILES, GRAPHS, INSTALL, REQUIRES, OptimumClient
from export.clients.protocol import Transcription
from workbench.audio import Wave

__all__ = ["EXACT", "FILES", "GRAPHS", "INSTALL", "REQUIRES", "open_client"]
EXACT = True


class PaddedOptimumClient(OptimumClient):
    """A bundle in Optimum, always read at 30 s."""

    def transcribe(self, wave: Wave, language: str) -> Transcription:
        """Transcribe one utterance."""
        return self.transcribe_at_30_s(wave, language)


def open_client(bundle: Path, precision: str, threads: int | None) -> PaddedOptimumClient:
    """Open a bundle."""
    return PaddedOptimumClient(bundle, precision, threads)
