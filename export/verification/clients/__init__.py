"""Runtimes to verify a bundle in: one module each, found by name.

A module defines how to detect the runtime: either `missing()`, which returns None or a remedy, or `REQUIRES`, the module to import (or
`installed()`), with `INSTALL`, how to install it. It also defines `EXACT`, whether fp32 must reproduce torch's tokens (or its text, if the
runtime returns no tokens) rather than meet the WER budget; `GRAPHS` and `FILES`, what it reads from a bundle, `CTC`, the same of one with a CTC head if it reads such models; and `open_client(bundle,
precision, threads)`, which returns a `Client`. To add a runtime, add a module. Each runs in its own process.
"""

from export.verification.clients.protocol import Client, Transcription
from export.verification.clients.registry import (
    client_module,
    has_graphs_of,
    is_exact,
    known_clients,
    needs_of,
    unavailable_reason,
    unreadable_reason,
)

__all__ = [
    "Client",
    "Transcription",
    "client_module",
    "has_graphs_of",
    "is_exact",
    "known_clients",
    "needs_of",
    "unavailable_reason",
    "unreadable_reason",
]
