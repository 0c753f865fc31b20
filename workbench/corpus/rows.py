"""The rows of a manifest file, whatever its format: JSON lines, a JSON array, CSV or TSV, in UTF-8, UTF-16 or UTF-32."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from workbench.core.errors import UserError

Row = tuple[int, dict[str, object]]  # the line that it begins on, counted from 1, and its fields

EXPECTED = "expected JSON lines, a JSON array, CSV (.csv) or TSV (.tsv)"
MAX_BYTES = 2_000_000_000  # some ten million utterances
_BOMS = (  # UTF-32's first: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_BINARY = {b"PAR1": "a Parquet file; open its folder as hf:FOLDER",
           b"PK\x03\x04": "a ZIP archive or an Excel sheet; unpack it, or save the sheet as CSV",
           b"\x1f\x8b": "compressed; unpack it with gunzip"}  # fmt: skip


def read_rows(manifest: Path) -> Iterator[Row]:
    """Each row of a manifest with the line it begins on, in order.

    Raises:
        UserError: naming file and line where the file is not what its name says, or a row is damaged.
    """
    content = _text(manifest)
    suffix = manifest.suffix.lower()
    if suffix == ".csv":
        return _csv_rows(manifest, content)
    if suffix == ".tsv":
        return _tsv_rows(manifest, content)
    if content.lstrip().startswith("["):
        return _array_rows(manifest, content)
    return _json_rows(manifest, content)


def _text(manifest: Path) -> str:
    if (size := manifest.stat().st_size) > MAX_BYTES:
        raise UserError(
            f"{manifest}: has {size:,} bytes, expected at most {MAX_BYTES:,}; split it into several corpora"
        )
    data = manifest.read_bytes()
    for start, kind in _BINARY.items():
        if data.startswith(start):
            raise UserError(f"{manifest}: is {kind}; {EXPECTED}")
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in data[:1000]:
        raise UserError(
            f"{manifest}: holds zero bytes, as UTF-16 without a byte order mark does; "
            f"convert it, for example: iconv -f utf-16le -t utf-8 {manifest.name}"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise UserError(f"{manifest}: begins like {encoding.upper()} and is damaged ({error.reason})") from None
        at = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{manifest}:{at}: not UTF-8 (byte 0x{data[error.start]:02x}); "
            f"convert it, for example: iconv -f latin1 -t utf-8 {manifest.name}"
        ) from None


def _json_rows(manifest: Path, content: str) -> Iterator[Row]:
    # not splitlines(): a text may hold U+2028, which JSON allows in strings
    for number, line in enumerate(re.split(r"\r\n|\n|\r", content), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{manifest}:{number}: not a JSON object ({error.msg}, column {error.colno}); {EXPECTED}") from None  # fmt: skip
        except (ValueError, RecursionError) as error:
            raise _unreadable(f"{manifest}:{number}", error) from None
        yield number, _object(row, f"{manifest}:{number}")


def _array_rows(manifest: Path, content: str) -> Iterator[Row]:
    decoder = json.JSONDecoder()
    blank = re.compile(r"\s*")
    at, line, counted = content.index("[") + 1, 1, 0
    first = True
    while True:
        at = blank.match(content, at).end()  # type: ignore[union-attr]  # it matches everywhere
        line, counted = line + content.count("\n", counted, at), at
        where = f"{manifest}:{line}"
        if content[at : at + 1] == "]":
            break
        if not first:
            if content[at : at + 1] != ",":
                raise UserError(f"{where}: the JSON array is cut off or lacks a comma; expected [{{...}}, {{...}}]")
            at = blank.match(content, at + 1).end()  # type: ignore[union-attr]
            line, counted = line + content.count("\n", counted, at), at
            where = f"{manifest}:{line}"
        try:
            row, at = decoder.raw_decode(content, at)
        except json.JSONDecodeError as error:
            raise UserError(f"{manifest}:{error.lineno}: not a JSON object ({error.msg}, column {error.colno}); {EXPECTED}") from None  # fmt: skip
        except (ValueError, RecursionError) as error:
            raise _unreadable(where, error) from None
        yield line, _object(row, where)
        first = False
    if content[at + 1 :].strip():
        raise UserError(f"{where}: something follows the JSON array; expected one array, or one object per line")


def _unreadable(where: str, error: Exception) -> UserError:
    """The error for JSON that Python cannot read: a number of thousands of digits, or objects nested too deeply."""
    return UserError(f"{where}: cannot be read ({str(error).splitlines()[0]}); {EXPECTED}")


def _object(row: object, where: str) -> dict[str, object]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object for each clip, found {type(row).__name__}")
    return row


def _csv_rows(manifest: Path, content: str) -> Iterator[Row]:
    # strict: a quote that is not closed, or that has text after it, is an error instead of swallowed rows
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1  # of the row's first line: a quoted field may hold line breaks
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{manifest}:{number}: {_csv_fault(error)}") from None
        if record is None:
            return
        if not any(record):
            continue
        if header is None:
            header = [name.strip() for name in record]
        else:
            yield number, _named(header, record, f"{manifest}:{number}")


def _csv_fault(error: csv.Error) -> str:
    if "field limit" in str(error):
        return (
            f"a field has more than {csv.field_size_limit():,} characters; a quote is probably not closed, "
            "or the file is not a list of utterances"
        )
    return (
        f"quotes do not match ({error}); expected a field with a quote in it in quotes, with the quote doubled: "
        '"He said ""hi"""'
    )


def _tsv_rows(manifest: Path, content: str) -> Iterator[Row]:
    # Common Voice's TSV does not quote: a quote is part of the sentence, and a tab or line break never is
    header: list[str] | None = None
    for number, line in enumerate(re.split(r"\r\n|\n|\r", content), 1):
        if not line.strip():
            continue
        record = [_unquoted(value) for value in line.split("\t")]
        if header is None:
            header = [name.strip() for name in record]
        else:
            yield number, _named(header, record, f"{manifest}:{number}")


def _unquoted(value: str) -> str:
    """The value of a field that a spreadsheet or pandas has put in quotes, and any other as it stands."""
    inner = value[1:-1]
    if len(value) >= 2 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return value


def _named(header: list[str], record: list[str], where: str) -> dict[str, object]:
    if len(record) != len(header):
        more = "; put a text with the separator in it in quotes" if len(record) > len(header) else ""
        raise UserError(f"{where}: has {len(record)} fields, the header has {len(header)}{more}")
    return dict(zip(header, record, strict=True))
