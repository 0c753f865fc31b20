"""A disk that fills up is said in one line, whichever library was writing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import UserError


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Around the writing of a file or folder: raise UserError where the system refuses, such as on a full disk."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # libraries in Rust have exceptions of their own: safetensors' is no OSError, tokenizers' is a bare Exception
        if not isinstance(error, OSError | SafetensorError) and "(os error " not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"{path}: cannot be written ({reason}); free some space or choose another place, and run the same command again"
        ) from None
