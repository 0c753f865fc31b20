"""Text, JSON and YAML files: written atomically, read with errors that name the file and what was expected."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.core.atomic import atomic_path
from workbench.core.errors import UserError

MAX_JSON_BYTES = 64_000_000  # Whisper's tokenizer.json has 4 million
LFS = b"version https://git-lfs.github.com/spec/"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def expand_user(name: str | Path) -> Path:
    """The path that a user named: a leading `~` is their home; `~nobody`, where there is no such user, stays as it is."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; lone surrogates, which have no UTF-8, are escaped."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def json_text(value: object, indent: int | None = None) -> str:
    """JSON with non-ASCII text as it stands; bytes of a file name that are not UTF-8 (lone surrogates in Python) are escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def json_lines(path: Path) -> list[str]:
    """The lines of a JSON lines file that are not empty; split at newlines alone, since a text may hold U+2028."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def write_jsonl(path: Path, rows: Iterable[object]) -> None:
    """Write JSON lines atomically."""
    write_text(path, "".join(json_text(row) + "\n" for row in rows))


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, indented, non-ASCII text as it stands."""
    write_text(path, json_text(value, indent=2) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; raises UserError naming `what` and the place if it is missing, too large or malformed."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file; expected {what}")
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise UserError(f"{path}: has {size:,} bytes, expected at most {MAX_JSON_BYTES:,} of {what}")
        check_not_lfs_pointer(path)
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (expected {what})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected {what}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply; expected {what}") from None
    except ValueError as error:  # not JSON, not UTF-8, or a number of more digits than Python reads
        raise UserError(f"{path}: not valid JSON ({error}); expected {what}") from None


def read_object(path: Path, what: str) -> dict[str, Any]:
    """As `read_json`, for a JSON object: anything else is a UserError, too."""
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object with {what}, found {type(content).__name__}")
    return content


def check_not_lfs_pointer(path: Path) -> None:
    """Raise UserError for what `git clone` leaves in place of a large file where Git LFS is not installed."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise UserError(f"{path}: is a Git LFS pointer, not the file itself; run `git lfs install` and `git lfs pull` in its folder")  # fmt: skip


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML file of keys and values; raises UserError that names `what` was expected."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply; expected a {what}") from None
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # the latter: not UTF-8, not a date, or a number of thousands of digits
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def path_inside(folder: Path, name: str, where: str) -> Path:
    """Join a relative name from a manifest to its folder; raises UserError if it points outside."""
    path = (folder / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise UserError(f"{where}: {name!r} points outside {folder}; expected a relative path inside it")
    return path
