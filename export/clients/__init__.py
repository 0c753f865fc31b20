"""Runtimes that must load a bundle: one file each, found by its name.

A file defines `REQUIRES`, the import that the runtime needs (or `installed()`, where it is none of Python's), and `INSTALL`, how to
get it (or, in place of both, `missing()`, where it has an environment that we make), `EXACT`, whether it must write torch's very tokens in fp32 (or its text, where it hands out no tokens) rather than keep
within the WER budget, `GRAPHS` and `FILES`, what it reads of a bundle, and `open_client(bundle, precision, threads)`, which returns
a `Client`. Adding a runtime is adding a file. Each runs in a process of its own.
"""

from export.clients.protocol import Client, Transcription
from export.clients.registry import available, client_module, has_graphs_of, is_exact, known_clients

__all__ = ["Client", "Transcription", "available", "client_module", "has_graphs_of", "is_exact", "known_clients"]
