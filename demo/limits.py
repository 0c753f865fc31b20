"""What the page grants a visitor, and the folder that their recordings lie in while it does."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REFERENCE_CHARACTERS = 20_000  # of the text to compare with: aligning it takes time by its square
SWEEPS_SECONDS = 30.0


@dataclass(frozen=True)
class Limits:
    """Bounds that hold for every visitor; those of `workbench demo`."""

    longest_seconds: float = 600.0  # of a recording, and of a live session
    upload_mb: int = 100  # of one request; ten minutes of 16-bit mono at 48 kHz take 58 MB
    at_once: int = 16  # requests that take turns; each holds a decoded recording in memory, 4 MB a minute
    waiting: int = 64  # requests that wait for a turn; more are refused
    live: int = 4  # visitors who speak at the same time
    keep_minutes: float = 10.0  # until an upload is removed


@contextlib.contextmanager
def private_folder(keep_minutes: float) -> Iterator[Path]:
    """A folder that only this user can read, for all temporary files of the process while it lasts.

    Gradio serves each file of its upload folder to whoever knows the address, and leaves half an upload in the system's temporary
    folder. So both are a folder of this page alone; what is older than `keep_minutes` is removed, and all of it at the end.
    """
    before = tempfile.tempdir, os.environ.get("GRADIO_TEMP_DIR")
    done = threading.Event()
    with tempfile.TemporaryDirectory(prefix="workbench-demo-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        tempfile.tempdir, os.environ["GRADIO_TEMP_DIR"] = str(folder), str(folder)

        def sweeping() -> None:
            while not done.wait(SWEEPS_SECONDS):
                sweep(folder, 60 * keep_minutes)

        threading.Thread(target=sweeping, name="sweeper", daemon=True).start()
        try:
            yield folder
        finally:
            done.set()
            tempfile.tempdir = before[0]
            if before[1] is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before[1]


def sweep(folder: Path, seconds: float) -> None:
    """Remove files that were last written more than `seconds` ago, and folders that are empty and as old."""
    old = time.time() - seconds
    for root, _, names in os.walk(folder, topdown=False):
        for path in (Path(root) / name for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_ctime < old:
                    path.unlink()
        if Path(root) != folder and Path(root).stat().st_mtime < old:
            with contextlib.suppress(OSError):  # not empty
                Path(root).rmdir()
