"""Runtimes that must load a bundle: one file each, found by its name.

A file defines how the runtime is found: either `missing()`, which returns None or what to do, or `REQUIRES`, the import that it needs (or
`installed()`), with `INSTALL`, how to get it. It also defines `EXACT`, whether it must write torch's very tokens in fp32 (or its
text, where it hands out no tokens) rather than keep within the WER budget, `GRAPHS` and `FILES`, what it reads of a bundle, and
`open_client(bundle, precision, threads)`, which returns a `Client`. Adding a runtime is adding a file. Each runs in a process of its own.
"""

from export.verification.clients.protocol import Client, Transcription
from export.verification.clients.registry import (
    client_module,
    has_graphs_of,
    is_exact,
    known_clients,
    unavailable_reason,
)

__all__ = [
    "Client",
    "Transcription",
    "client_module",
    "has_graphs_of",
    "is_exact",
    "known_clients",
    "unavailable_reason",
]
