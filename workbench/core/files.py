"""Files that are either whole or absent: atomic writes, checksums, cache folders."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import UserError

if TYPE_CHECKING:
    from filelock import BaseFileLock

MAX_JSON_BYTES = 64_000_000  # Whisper's tokenizer.json has 4 million
LFS = b"version https://git-lfs.github.com/spec/"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
WORKPLACE = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.part")  # of `workplace`
NEW, OLD, LOCK = "new", "old", "lock"  # what may lie in one


def cache_dir() -> Path:
    """Folder for what can be computed or fetched again; `WORKBENCH_CACHE` overrides the platform's default."""
    if configured := os.environ.get("WORKBENCH_CACHE"):
        return expanded(configured)
    from platformdirs import user_cache_path

    return user_cache_path("distill-workbench", appauthor=False)


def expanded(name: str | Path) -> Path:
    """The path that a user named: a leading `~` is their home; `~nobody`, where there is no such user, stays as it is."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@functools.cache
def _known_hashes(path: Path) -> dict[tuple[str, int, int], str]:
    """SHA-256 of files read before, by path, size and time of change, so that a corpus is hashed once and not every run."""
    known: dict[tuple[str, int, int], str] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
            fields = line.split("\t")
            if len(fields) == 4 and len(fields[0]) == 64:  # a kill may have cut the last line short
                known[fields[3], int(fields[1]), int(fields[2])] = fields[0]
    return known


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, remembered for as long as its size and time of change stay."""
    status = path.stat()
    resolved = str(path.resolve())
    key = (resolved, status.st_size, status.st_mtime_ns)
    index = cache_dir() / "hashes.tsv"
    known = _known_hashes(index)
    if key not in known:
        known[key] = sha256(path)
        if "\t" not in resolved and "\n" not in resolved:
            index.parent.mkdir(parents=True, exist_ok=True)
            with index.open("a", encoding="utf-8", errors="surrogateescape") as file:  # names of any bytes
                file.write(f"{known[key]}\t{status.st_size}\t{status.st_mtime_ns}\t{resolved}\n")
    return known[key]


def sha256_of(value: object) -> str:
    """Hex SHA-256 of a JSON-serialisable value in canonical form."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass")
    ).hexdigest()


def cache_key(what: object, digits: int = 16) -> str:
    """Key of what was computed from these values, all that decide it."""
    return sha256_of(what)[:digits]


def cache_folder(kind: str, what: object) -> Path:
    """Folder of the cache for what is computed from these values."""
    return cache_dir() / kind / cache_key(what)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path on the same disk that replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _recover_once(path.parent.absolute())
    with workplace(path) as place:
        yield place / NEW
        (place / NEW).replace(path)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `path` when the block ends without an error.

    Old and new change places in one step where the system can do that. Elsewhere the old one is moved aside first, and after
    a kill in that moment `recover` puts it back. Nothing is removed before the new one stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path.parent)
    with workplace(path) as place:
        new, old = place / NEW, place / OLD
        new.mkdir()
        yield new
        if not os.path.lexists(path):
            new.replace(path)
        elif not _exchange(new, path):
            path.replace(old)
            new.replace(path)
            old.replace(new)  # it is nothing to be put back any more


@contextlib.contextmanager
def workplace(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, `.NAME.….part`, which is removed with all that is in it when the block ends.

    Until then its process holds a lock inside. The lock goes with the process, however that ends, so that `recover` can tell
    what a killed process left from what another one is working on.
    """
    place, lock = _claimed(path)
    try:
        yield place
    finally:
        try:
            _clear(place, path)
        finally:
            lock.release()


def recover(folder: Path) -> None:
    """Remove the workplaces in a folder whose processes are dead, and put back what they had moved aside and not replaced."""
    from filelock import FileLock

    for place in sorted(folder.glob(".*.part")):
        found = WORKPLACE.fullmatch(place.name)
        if found is None or place.is_symlink() or not place.is_dir():
            continue
        if not (place / LOCK).exists():
            with contextlib.suppress(OSError):  # if it is not empty, it is not ours
                place.rmdir()
            continue
        # suppressed: it is held by a live process, or was just removed by one
        with contextlib.suppress(OSError), FileLock(place / LOCK, timeout=0):
            _clear(place, folder / found[1])


@functools.cache
def _recover_once(folder: Path) -> None:
    """`recover` for files, of which one folder may be given very many."""
    recover(folder)


def _claimed(path: Path) -> tuple[Path, BaseFileLock]:
    """A new workplace and the lock that is held on it."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        place = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        lock = FileLock(place / LOCK)
        # before it was locked, another process may have taken it for a dead one's
        with contextlib.suppress(Timeout, FileNotFoundError):
            lock.acquire(timeout=0)
            return place, lock


def _clear(place: Path, path: Path) -> None:
    """Remove a workplace; what was moved aside from `path` is put back first if nothing has taken its place.

    The lock goes last: without it, what a kill leaves half removed would be nobody's.
    """
    if os.path.lexists(place / OLD) and not os.path.lexists(path):
        (place / OLD).replace(path)
    with contextlib.suppress(OSError):
        for left in place.iterdir():
            if left.name == LOCK:
                continue
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()
    shutil.rmtree(place, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; returns whether that could be done (Linux, on most file systems)."""
    if sys.platform != "linux":
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: object, indent: int | None = None) -> str:
    """JSON with non-ASCII text as it stands; bytes of a file's name that are no UTF-8 (lone surrogates in Python) are escaped."""
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
        check_no_pointer(path)
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (expected {what})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected {what}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply; expected {what}") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of more digits than Python reads
        raise UserError(f"{path}: not valid JSON ({error}); expected {what}") from None


def read_object(path: Path, what: str) -> dict[str, Any]:
    """As `read_json`, of a file that holds a JSON object: anything else is a UserError, too."""
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object with {what}, found {type(content).__name__}")
    return content


def check_no_pointer(path: Path) -> None:
    """Raise UserError for what `git clone` leaves in place of a large file where Git LFS is not installed."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise UserError(f"{path}: is a Git LFS pointer, not the file itself; run `git lfs install` and `git lfs pull` in its folder")  # fmt: skip


def read_yaml(path: Path, what: str, shipped: str) -> dict[str, Any]:
    """Read a YAML file of keys and values; raises UserError naming `what` and where the `shipped` ones are."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}; the shipped ones are in {shipped}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply; expected a {what}") from None
    except (yaml.YAMLError, ValueError) as error:  # the latter: no UTF-8, no date, or a number of thousands of digits
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


def check_hashes(folder: Path, expected: Mapping[str, str], where: str, remedy: str) -> None:
    """Compare the files of a folder with their recorded SHA-256; raises UserError at the first difference."""
    for name, digest in expected.items():
        path = path_inside(folder, name, where)
        if not path.is_file():
            raise UserError(f"{path}: missing, though {where} lists it; {remedy}")
        if (found := sha256(path)) != digest:
            raise UserError(
                f"{path}: SHA-256 is {found[:12]}…, {where} says {digest[:12]}…; the file is damaged, {remedy}"
            )


def check_free_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise UserError before work starts if `folder`'s disk cannot hold `needed_bytes` more."""
    probe = folder
    while not probe.exists():
        probe = probe.parent
    free = shutil.disk_usage(probe).free
    if free < needed_bytes:
        raise UserError(
            f"{folder}: {what} needs about {needed_bytes / 1e6:,.0f} MB but only {free / 1e6:,.0f} MB are free; "
            "free some space, or set WORKBENCH_CACHE to a larger disk"
        )
