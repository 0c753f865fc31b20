"""Keep the C library from handing each step's memory back to the system and fetching it anew."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let freed blocks stay with the process; returns whether the C library could be told.

    glibc maps every large block afresh and unmaps it when it is freed, so a training step on the CPU touches hundreds of
    megabytes of new pages each time. Kept blocks made a step a fifth shorter (docs/decisions/0007).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
