"""What a CTC head writes: each id stands for some bytes of the text, and the blank for none.

A checkpoint's `vocab.json` names its tokens, as transformers' Wav2Vec2CTCTokenizer writes it: characters, with a token between words. A
Whisper encoder with a CTC head has characters in the same form, or the 256 bytes as `<0x41>`, or some of Whisper's byte-pair tokens as they
stand in its tokenizer.json; `units` in its config.json says which. A Parakeet has the sentencepiece tokens of its tokenizer.json.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from workbench.core.errors import UserError, first_line
from workbench.core.files import read_json, read_object
from workbench.models.protocol import IGNORE_INDEX, Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Units = Literal["characters", "bytes", "bpe", "sentencepiece"]
Case = Literal["keep", "lower", "upper"]
VOCABULARY, TOKENIZER = "vocab.json", "tokenizer.json"
BLANK, DELIMITER = "<pad>", "|"  # as in wav2vec2's vocabularies
MAX_TOKENS = 100_000
FOLDED = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})
BREAKS = re.compile(r"[\s/‐-―−-]")  # what separates words: white space, dashes and strokes
SPACE = "\u2581"  # a space in the name of a sentencepiece token
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class CtcTokens:
    """A vocabulary: text to ids and back."""

    names: Sequence[str]  # of each id, as vocab.json has them; "" where none has
    pieces: Sequence[bytes]  # what each id stands for in a text; b"" for the blank and other special tokens
    blank: int
    units: Units = "characters"
    case: Case = "keep"  # of the letters, which texts are brought into
    lower: bool = False  # whether what is written is put in lower case
    # of bpe and sentencepiece: names of the tokens of a text
    split: Callable[[str], Sequence[str]] = field(default=list, compare=False)

    @cached_property
    def _by_piece(self) -> dict[bytes, int]:
        return {piece: i for i, piece in enumerate(self.pieces) if piece}

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names) if self.pieces[i]}

    @cached_property
    def _letters(self) -> set[str]:
        """Characters that can be written: those that are a token, or of sentencepiece stand in one."""
        whole = [piece.decode("utf-8", "replace") for piece in self.pieces]
        return {char for piece in whole for char in piece} if self.units == "sentencepiece" else set(whole)

    @cached_property
    def _has_bytes(self) -> bool:
        """Whether every byte is a token, so that any text can be spelled."""
        return {f"<0x{byte:02X}>" for byte in range(256)} <= set(self.names)

    def encode(self, text: str) -> list[int]:
        """Ids of a transcript. Characters that the vocabulary lacks are left out: see `lacking`."""
        ids, known = self._by_piece, self._by_name
        if self.units == "characters":
            return [ids[char.encode()] for char in self.readable(text) if char.encode() in ids]
        if self.units == "bytes":
            return [ids[bytes([byte])] for byte in unicodedata.normalize("NFC", text).strip().encode()]
        if self.units == "sentencepiece":
            plain = self.readable(text)  # of nothing, a tokenizer may make a space
            return [known[name] for name in self.split(plain) if name in known] if plain else []
        out: list[int] = []
        for name in self.split(text):  # a token that was not kept is spelled in bytes, all of which are
            out += [known[name]] if name in known else [known[char] for char in name]
        return out

    def readable(self, text: str) -> str:
        """What tokens are read from: the characters of a text that the vocabulary has, in its case, words separated by one space."""
        plain = self._cased(text)
        return " ".join((plain if self._has_bytes else "".join(map(self._known, plain))).split())

    def lacking(self, text: str) -> list[str]:
        """Letters and digits of a text that the vocabulary lacks."""
        if self.units in ("bytes", "bpe") or self._has_bytes:
            return []
        return [c for c in self._cased(text) if unicodedata.category(c)[0] in "LN" and not self._known(c)]

    def _cased(self, text: str) -> str:
        plain = unicodedata.normalize("NFC", text)
        return plain.upper() if self.case == "upper" else plain.lower() if self.case == "lower" else plain

    def _known(self, char: str) -> str:
        """The character, or what stands for it in this vocabulary: another apostrophe, a space for a dash; else nothing."""
        if char in self._letters:
            return char
        folded = char.translate(FOLDED)
        return folded if folded in self._letters else " " if BREAKS.fullmatch(char) else ""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids whose repetitions and blanks are left out already; bytes that are no UTF-8 become U+FFFD."""
        text = b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")
        plain = " ".join(text.split())
        return plain.lower() if self.lower else plain

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Transcripts as labels; there are no decoder inputs."""
        rows = [torch.tensor(self.encode(text), dtype=torch.int64) for text in texts]
        return Tokens(
            torch.empty(len(rows), 0, dtype=torch.int64),
            torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE_INDEX),
        )

    def by_name(self) -> dict[str, int]:
        """The content of vocab.json."""
        return {name: i for i, name in enumerate(self.names) if name}


def collapse(best: Tensor, blank: int) -> list[int]:
    """Ids that the likeliest token at each frame stands for: repetitions once, blanks not at all. int64 [frames]"""
    kept: list[int] = best.unique_consecutive().tolist()
    return [i for i in kept if i != blank]


def read_tokens(folder: Path, blank: int, size: int, units: Units = "characters") -> CtcTokens:
    """The vocabulary of a checkpoint folder.

    Args:
        folder: holds vocab.json, and perhaps added_tokens.json, tokenizer_config.json and special_tokens_map.json.
        blank: the model's `pad_token_id`.
        size: the model's `vocab_size`.
        units: what the tokens are.

    Raises:
        UserError: it cannot be read, has ids that the model does not have, or another blank than the model.
    """
    path = folder / VOCABULARY
    if not path.is_file():
        raise UserError(f"{folder}: lacks {VOCABULARY}, the characters that it writes; copy the original checkpoint's")
    settings = _settings(folder)
    language = settings.get("target_lang")
    table = {**_ids(path, size, language), **_ids(folder / "added_tokens.json", size, language)}
    names = [""] * size
    for name, i in table.items():
        names[i] = name
    special = {_content(value) for key, value in settings.items() if key.endswith("_token")} - {""}
    # only characters have one: a byte-pair token may be a bar itself
    delimiter = _content(settings.get("word_delimiter_token", DELIMITER)) if units == "characters" else None
    pad = _content(settings.get("pad_token", BLANK))
    if table.get(pad, blank) != blank:
        raise UserError(
            f"{folder}: {VOCABULARY} has {pad!r} as {table[pad]}, config.json's pad_token_id, the blank, is {blank}; "
            "they are of different checkpoints, copy both from one"
        )
    special -= {delimiter}
    pieces = [b" " if name == delimiter else _piece(name, units) for name in names]
    for i, name in enumerate(names):
        if i == blank or name in special or (units == "characters" and re.fullmatch(r"<.+>|\[.{2,}\]", name)):
            pieces[i] = b""
    if not any(pieces):
        raise UserError(f"{path}: has no token but special ones")
    case = _case_of(pieces) if units == "characters" else "keep"
    split = _bpe_splitter(folder) if units == "bpe" else list
    return CtcTokens(names, pieces, blank, units, case, settings.get("do_lower_case") is True, split)


def read_sentencepiece(folder: Path, blank: int, size: int) -> CtcTokens:
    """The vocabulary in a checkpoint's tokenizer.json, whose tokens spell a space as U+2581.

    Args:
        folder: holds tokenizer.json.
        blank: the model's `pad_token_id`.
        size: the model's `vocab_size`.

    Raises:
        UserError: it cannot be read, has ids that the model does not have, or names another token as padding than the model's blank.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise UserError(f"{folder}: lacks {TOKENIZER}, the tokens that it writes; copy the original checkpoint's")
    splitter = _splitter(path, "")
    content = read_object(path, "a tokenizer")
    added = content.get("added_tokens")
    special = {
        _content(token)
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and token.get("special")
    }
    names = [""] * size
    for name, i in splitter.tokenizer.get_vocab(with_added_tokens=True).items():
        if not 0 <= i < size:
            raise UserError(
                f"{path}: token {name[:60]!r} has the id {i}, the model only {size:,} tokens; they are of different checkpoints, copy both from one"
            )
        names[i] = name
    pad = _content(_settings(folder).get("pad_token", names[blank]))
    if pad in names and pad != names[blank]:
        raise UserError(
            f"{folder}: tokenizer_config.json's pad_token, {pad!r}, is {names.index(pad)}, config.json's pad_token_id, the blank, is {blank}; "
            "they are of different checkpoints, copy both from one"
        )
    pieces = [b"" if i == blank or name in special else _piece(name, "sentencepiece") for i, name in enumerate(names)]
    bytes_alone = [bool(BYTE.fullmatch(name)) for name in names]
    plain = {piece for piece, is_byte in zip(pieces, bytes_alone, strict=True) if not is_byte}
    # a byte that is a character with a token of its own is never written
    pieces = [b"" if is_byte and piece in plain else piece for piece, is_byte in zip(pieces, bytes_alone, strict=True)]
    if not any(pieces):
        raise UserError(f"{path}: has no token but special ones")
    return CtcTokens(names, pieces, blank, "sentencepiece", _case_of(plain), split=splitter)


def _case_of(pieces: Iterable[bytes]) -> Case:
    """The case of all letters that tokens hold, if they have the same."""
    cased = {c for piece in pieces for c in piece.decode("utf-8", "replace") if c.lower() != c.upper()}
    if not cased:
        return "keep"
    return "upper" if all(c == c.upper() for c in cased) else "lower" if all(c == c.lower() for c in cased) else "keep"


def characters_of(texts: Iterable[str]) -> CtcTokens:
    """A vocabulary of the characters of some texts: lower-case letters, digits, marks and apostrophes; the rest is left out."""
    used = {char for text in texts for char in unicodedata.normalize("NFC", text).translate(FOLDED).lower()}
    kept = sorted(c for c in used if unicodedata.category(c)[0] in "LNM" or c == "'")
    if not kept:
        raise UserError("student.ctc: the corpus's texts hold no letter or digit; check them, or use bytes")
    names = [BLANK, DELIMITER, *kept]
    return CtcTokens(names, [b"", b" ", *(c.encode() for c in kept)], 0, "characters", "lower")


def all_bytes() -> CtcTokens:
    """A vocabulary of the 256 bytes of UTF-8, which can write any text."""
    names = [BLANK, *(f"<0x{byte:02X}>" for byte in range(256))]
    return CtcTokens(names, [b"", *(bytes([byte]) for byte in range(256))], 0, "bytes")


def bpe_tokens_of(folder: Path, texts: Iterable[str]) -> CtcTokens:
    """A vocabulary of the byte-pair tokens that some texts need, and of the single bytes, from a Whisper's tokenizer."""
    split = _bpe_splitter(folder)
    used = {name for text in texts for name in split(text)} | set(byte_signs().values())
    names = [BLANK, *sorted(used)]
    return CtcTokens(names, [b"", *(_piece(name, "bpe") for name in names[1:])], 0, "bpe", split=split)


def byte_signs() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@dataclass(frozen=True)
class Splitter:
    """Cuts a text into the names of its tokens."""

    tokenizer: Tokenizer
    before: str  # the first word: Whisper writes a space there, and other tokenizers add what they need

    def __call__(self, text: str) -> Sequence[str]:
        """Names of the tokens."""
        names: list[str] = self.tokenizer.encode(self.before + text.strip(), add_special_tokens=False).tokens
        return names


def _bpe_splitter(folder: Path) -> Splitter:
    """The splitter of a Whisper's tokenizer.json."""
    return _splitter(folder / TOKENIZER, " ")


def _splitter(path: Path, before: str) -> Splitter:
    from tokenizers import Tokenizer

    model = read_object(path, "a tokenizer").get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise UserError(
            f"{path}: model.dropout is {str(model['dropout'])[:60]}; it would cut a text otherwise each time, delete the key"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode("a\ufffe")  # which no vocabulary has: a token for what is unknown that is none fails here
        return Splitter(tokenizer, before)
    except Exception as error:  # noqa: BLE001  # the tokenizers library raises nothing narrower
        raise UserError(f"{path}: cannot be loaded ({first_line(error)}); copy the original checkpoint's") from None


def _piece(name: str, units: Units) -> bytes:
    """The bytes that a token of this name stands for."""
    if units == "characters":
        return name.encode()
    if units in ("bytes", "sentencepiece"):
        found = BYTE.fullmatch(name)
        if found:
            return bytes([int(found[1], 16)])
        return b"" if units == "bytes" or re.fullmatch(r"<.+>", name) else name.replace(SPACE, " ").encode()
    values = {sign: byte for byte, sign in byte_signs().items()}
    return bytes(values[sign] for sign in name) if all(sign in values for sign in name) else b""


def _ids(path: Path, size: int, language: object) -> dict[str, int]:
    """A file of names and ids, or of several languages' (MMS), of which one is taken; none if there is no such file."""
    if not path.is_file():
        return {}
    content = read_object(path, "a vocabulary")
    if content and all(isinstance(value, dict) for value in content.values()):
        if not isinstance(language, str) or language not in content:
            raise UserError(
                f"{path}: holds vocabularies of {len(content)} languages, and tokenizer_config.json's target_lang is {repr(language)[:60]}; "
                "save the checkpoint for one language, as docs/ctc.md shows"
            )
        content = content[language]
    for name, i in content.items():
        if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < MAX_TOKENS:
            raise UserError(f"{path}: token {name[:60]!r} has the id {repr(i)[:60]}; expected 0 to {MAX_TOKENS - 1:,}")
        if i >= size:
            raise UserError(
                f"{path}: token {name[:60]!r} has the id {i}, the model only {size:,} tokens; they are of different checkpoints, copy both from one"
            )
    return content


def _settings(folder: Path) -> Mapping[str, object]:
    """Names of the special tokens, whether the text is put in lower case, and the language of a vocabulary that holds several."""
    found: dict[str, object] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name, "settings of a tokenizer")
            found |= content if isinstance(content, dict) else {}
    return found


def _content(value: object) -> str:
    """A special token's name: a text, or an object that has it as `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
