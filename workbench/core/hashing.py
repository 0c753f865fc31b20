"""SHA-256 of files and values, the cache's folder, and the keys of what lies in it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from workbench.core.errors import UserError
from workbench.core.files import expand_user, path_inside


def cache_dir() -> Path:
    """Folder for what can be computed or fetched again; `WORKBENCH_CACHE` overrides the platform's default."""
    if configured := os.environ.get("WORKBENCH_CACHE"):
        return expand_user(configured)
    from platformdirs import user_cache_path

    return user_cache_path("distill-workbench", appauthor=False)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@functools.cache
def _known_hashes(path: Path) -> dict[tuple[str, int, int], str]:
    """SHA-256 of files read before, by path, size and modification time, so that a corpus is not hashed in every run."""
    known: dict[tuple[str, int, int], str] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
            fields = line.split("\t")
            if len(fields) == 4 and len(fields[0]) == 64:  # a kill may have cut the last line short
                known[fields[3], int(fields[1]), int(fields[2])] = fields[0]
    return known


def cached_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, remembered while its size and modification time stay the same."""
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


def hash_json(value: object) -> str:
    """Hex SHA-256 of a JSON-serialisable value in canonical form."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass")
    ).hexdigest()


def cache_key(what: object, digits: int = 16) -> str:
    """Key of what is computed from these values, which must be all that determine it."""
    return hash_json(what)[:digits]


def cache_folder(kind: str, what: object) -> Path:
    """Folder of the cache for what is computed from these values."""
    return cache_dir() / kind / cache_key(what)


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
