"""CRC-32 of what is kept on disk: enough to detect flipped bits, and at a gigabyte per second twice as fast as SHA-256."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MARK = b', "line_crc32": "'  # last field of a line, over the line without it


def file_crc32(path: Path) -> int:
    """CRC-32 of a file, read in blocks of 1 MiB."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def line_with_checksum(row: Mapping[str, object]) -> str:
    """A line of JSON with a checksum, and the newline."""
    text = json.dumps(row)
    return f'{text[:-1]}{MARK.decode()}{zlib.crc32(text.encode()):08x}"}}\n'


def read_checked_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file whose lines carry checksums; a line that a kill cut short, that is damaged, or that has no checksum is left out."""
    yield from checked_rows(path.read_bytes())


def checked_rows(lines: bytes) -> Iterator[dict[str, Any]]:
    """`read_checked_rows` of a file's content, or of a part of it."""
    for line in lines.split(b"\n"):
        text, _, found = line.rpartition(MARK)
        if found == b'%08x"}' % zlib.crc32(text + b"}"):
            row: dict[str, Any] = json.loads(text + b"}")
            yield row
