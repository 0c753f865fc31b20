"""Files and folders that are either whole or absent: written beside their place, then moved there in one step."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

STAGING_FOLDER = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.part")  # of `staging_folder`
NEW, OLD, LOCK = "new", "old", "lock"  # what may lie in one


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path on the same disk that replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _recover_once(path.parent.absolute())
    with staging_folder(path) as place:
        yield place / NEW
        (place / NEW).replace(path)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `path` when the block ends without an error.

    Old and new are swapped in one step where the system can do that. Elsewhere the old one is moved aside first, and after
    a kill in that moment `recover` puts it back. Nothing is removed before the new one is in place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path.parent)
    with staging_folder(path) as place:
        new, old = place / NEW, place / OLD
        new.mkdir()
        yield new
        if not os.path.lexists(path):
            new.replace(path)
        elif not _exchange(new, path):
            path.replace(old)
            new.replace(path)
            old.replace(new)  # so that it is not put back


@contextlib.contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, `.NAME.….part`, which is removed with all that is in it when the block ends.

    Until then its process holds a lock inside. The lock is released when the process ends, however it does, so that `recover` can tell what
    a killed process left from what another one is working on.
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
    """Remove the staging folders that dead processes left in a folder, and put back what they had moved aside but not yet replaced."""
    from filelock import FileLock

    for place in sorted(folder.glob(".*.part")):
        found = STAGING_FOLDER.fullmatch(place.name)
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
    """`recover`, once per folder: very many files may be written to one."""
    recover(folder)


def _claimed(path: Path) -> tuple[Path, BaseFileLock]:
    """A new staging folder and the lock that is held on it."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        place = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        lock = FileLock(place / LOCK)
        # before it was locked, another process may have taken it for a dead one's; FileExistsError: in the moment in which filelock made sure of it
        with contextlib.suppress(Timeout, FileNotFoundError, FileExistsError):
            lock.acquire(timeout=0)
            return place, lock


def _clear(place: Path, path: Path) -> None:
    """Remove a staging folder; what was moved aside from `path` is put back first if nothing has taken its place.

    The lock is removed last: without it, what a kill leaves half removed would never be cleaned up.
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
    """Swap two paths in one step; returns whether that was possible (Linux, on most file systems)."""
    if sys.platform != "linux":
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
