"""Token ids to text: Whisper's byte-level BPE, decoding only."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .fields import check_vocabulary
from .manifest import BundleError, read_json

# letters of scripts without spaces: Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters
UNSPACED = ((0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0x20000, 0x2FFFF))  # fmt: skip


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte: itself where printable, else shifted to 256 and above."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def is_within_word(character: str) -> bool:
    """Whether a word goes on after a character, or before it: a letter, a digit, a sign on one, or a part of one (U+FFFD)."""
    inside = character.isalnum() or character == "\ufffd" or unicodedata.category(character).startswith("M")
    return inside and not is_unspaced(character)


def is_unspaced(character: str) -> bool:
    """Whether a character's script has no spaces between words."""
    return any(low <= ord(character) <= high for low, high in UNSPACED)


class Detokenizer:
    """Text of token ids.

    Args:
        vocabulary: path of vocab.json, the byte-level tokens; special tokens have no text.
        added: words that were added to the tokenizer, by id, as they stand in a text.

    Raises:
        BundleError: the vocabulary is not a JSON object of tokens with ids within bounds.
    """

    def __init__(self, vocabulary: Path, added: Mapping[int, str] | None = None) -> None:
        alphabet = byte_alphabet()
        try:
            entries = check_vocabulary(read_json(vocabulary))
        except ValueError as error:
            raise BundleError(f"{vocabulary}: {error}; export the bundle again") from None
        added = added or {}
        pieces = [b""] * (max([*entries.values(), *added], default=-1) + 1)
        for token, i in entries.items():
            if all(c in alphabet for c in token):
                pieces[i] = bytes(alphabet[c] for c in token)
        for i, word in added.items():
            pieces[i] = word.encode()
        # one byte string and its pieces' ends: as separate objects they would take twenty times the memory
        self.joined = b"".join(pieces)
        self.ends = np.cumsum([0, *map(len, pieces)], dtype=np.int32)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """Tokens by their bytes, without those that stand for none."""
        return {spelled: i for i in range(len(self.ends) - 1) if (spelled := self.bytes_of(i))}

    @cached_property
    def prefixes(self) -> set[bytes]:
        """All that tokens begin with."""
        return {spelled[:size] for spelled in self.ids for size in range(len(spelled) + 1)}

    @cached_property
    def within_word(self) -> npt.NDArray[np.bool_]:
        """Whether each token would continue a word before it. -> [tokens]"""
        begins = (self.bytes_of(i).decode("utf-8", "replace")[:1] for i in range(len(self.ends) - 1))
        return np.array([bool(first) and is_within_word(first) for first in begins])

    def bytes_of(self, token: int) -> bytes:
        """Bytes that a token stands for; empty for a special or unknown one."""
        if not 0 <= token < len(self.ends) - 1:
            return b""
        return self.joined[self.ends[token] : self.ends[token + 1]]

    def __call__(self, ids: Iterable[int]) -> str:
        """Join tokens; bytes that are not UTF-8, as a cut-off transcript may end in, become U+FFFD."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace").strip()
