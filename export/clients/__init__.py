"""Runtimes that must load a bundle: one file each, found by its name.

A file defines `REQUIRES`, the import that the runtime needs (or `installed()`, where it is none of Python's), `INSTALL`, how to
get it, `EXACT`, whether it must write torch's very tokens in fp32 (or its text, where it hands out no tokens) rather than keep
within the WER budget, and `open_client(bundle, precision, threads)`, which returns a `Client`. Adding a runtime is adding a file.
Each runs in a process of its own.
"""

from export.clients.protocol import Client, Transcription
from export.clients.registry import available, is_exact, known_clients

__all__ = ["Client", "Transcription", "available", "is_exact", "known_clients"]
