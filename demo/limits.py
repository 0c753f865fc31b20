"""Limits for visitors of the page, and the temporary folder for their recordings."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REFERENCE_CHARACTERS = 20_000  # of the reference transcript: alignment time grows with its square
HOTWORD_CHARACTERS = 2_000  # of all hotwords together
SWEEPS_SECONDS = 30.0
CLIPS = "clips"  # Gradio's `concurrency_id` of all events that transcribe a recording, so that they share one limit


@dataclass(frozen=True)
class DemoLimits:
    """Limits for visitors; the defaults are those of `workbench demo`."""

    longest_seconds: float = 600.0  # of a recording, and of a live session
    upload_mb: int = 100  # of one request; ten minutes of 16-bit mono at 48 kHz take 58 MB
    # concurrent requests, which take turns; each holds a decoded recording in memory, 4 MB per minute
    at_once: int = 16
    waiting: int = 64  # queued requests; more are rejected
    live: int = 4  # visitors who speak at the same time
    keep_minutes: float = 10.0  # until an upload is removed


@contextlib.contextmanager
def private_folder(keep_minutes: float) -> Iterator[Path]:
    """A folder readable only by this user, for all temporary files of the process while the context lasts.

    Gradio serves every file of its upload folder to anyone who knows the URL, and leaves aborted uploads in the system's temporary folder.
    So both are set to this page's own folder; files older than `keep_minutes` are removed, and everything at the end.
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
    """Remove files last written more than `seconds` ago, and empty folders of that age."""
    old = time.time() - seconds
    for root, _, names in os.walk(folder, topdown=False):
        for path in (Path(root) / name for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_ctime < old:
                    path.unlink()
        if Path(root) != folder and Path(root).stat().st_mtime < old:
            with contextlib.suppress(OSError):  # not empty
                Path(root).rmdir()
