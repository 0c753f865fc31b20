"""Locks: one process at a time writes an output; others raise an error or wait."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from workbench.core.errors import UserError

log = logging.getLogger("workbench")


def lock_of(output: Path) -> Path:
    """The file that is locked while an output is written; it lies beside the output, with links resolved."""
    place = output.resolve()
    return place.with_name(f".{place.name}.lock")


@contextlib.contextmanager
def output_lock(output: Path, wait: bool = False, log_wait: bool = True) -> Iterator[None]:
    """Keep other processes away from an output, a file or a folder, until the block ends.

    The lock is the file `.NAME.lock` beside the output, so that the folder can be replaced while it is held. It is released when its
    process ends, however that happens; a file that a killed process leaves blocks nobody. The process that holds it may acquire it again.

    Args:
        output: what is written; it need not be there yet.
        wait: wait until it is free.
        log_wait: log that it waits.

    Raises:
        UserError: another process is at work on it.
    """
    from filelock import FileLock, Timeout

    path = lock_of(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(
                f"{output}: another process is at work on it; wait until it has ended, or choose another output"
            ) from None
        if log_wait:
            log.info("%s: another process is at work on it; waiting until it has ended", output)
        lock.acquire()
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            # while it is held: whoever opened it meanwhile sees that it has no name, and tries again
            path.unlink(missing_ok=True)
        lock.release()
