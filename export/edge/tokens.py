"""Token ids to text: Whisper's byte-level BPE, decoding only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte: itself where printable, else shifted to 256 and above."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


class Detokenizer:
    """Text of token ids from a vocab.json; special tokens say nothing."""

    def __init__(self, vocabulary: Path) -> None:
        alphabet = byte_alphabet()
        entries: dict[str, int] = json.loads(vocabulary.read_text(encoding="utf-8"))
        self.bytes_of = {
            i: bytes(alphabet[c] for c in token) for token, i in entries.items() if all(c in alphabet for c in token)
        }

    def __call__(self, ids: Iterable[int]) -> str:
        """Join tokens; bytes that are not UTF-8, as a cut-off transcript may end in, become U+FFFD."""
        return b"".join(self.bytes_of.get(i, b"") for i in ids).decode("utf-8", "replace").strip()
