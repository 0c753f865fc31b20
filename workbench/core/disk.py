"""A full disk: noticed before work starts, or reported in one line, whichever library was writing."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from workbench.core.errors import DISK_FULL_REMEDY, UserError, system_error


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Around the writing of a file or folder: raise UserError where the system refuses, such as on a full disk."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError) and system_error(error) is None:
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path}: cannot be written ({reason}); {DISK_FULL_REMEDY}") from None


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
