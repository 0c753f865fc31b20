"""Hugging Face Optimum as the tutorials use it: every clip padded to 30 s, Whisper's own `generate`.

A length-adaptive student was not trained on that much silence; its encoder graph trims it (export/graphs/padding.py).
"""

from __future__ import annotations

from pathlib import Path

from export.verification.clients.optimum import FILES, GRAPHS, OptimumClient, missing

__all__ = ["EXACT", "FILES", "GRAPHS", "missing", "open_client"]
EXACT = True


def open_client(bundle: Path, precision: str, threads: int | None) -> OptimumClient:
    """Open a bundle."""
    return OptimumClient(bundle, precision, threads, always_30_s=True)
