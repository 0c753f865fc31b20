"""Memory that is needed only while a model is loaded, returned to the system at once: otherwise it would count as the process's until its end."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's numbers for mallopt
AT_ONCE = 1 << 16  # bytes
AS_USUAL = {TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20}  # where glibc's own adaptation ends


@contextmanager
def trim_while_loading() -> Iterator[None]:
    """While loading, let glibc return what is freed; elsewhere nothing changes. The thresholds are the whole process's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    for threshold in AS_USUAL:
        mallopt(threshold, AT_ONCE)
    try:
        yield
    finally:
        for threshold, value in AS_USUAL.items():
            mallopt(threshold, value)
