"""A disk that fills up is said in one line, whichever library was writing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from workbench.core.errors import NO_ROOM, UserError, system_error


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
        raise UserError(f"{path}: cannot be written ({reason}); {NO_ROOM}") from None
