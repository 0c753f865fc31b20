"""How much freed memory a training process keeps on the CPU: enough to be fast, without growing over time."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
LARGEST_INT = 2**31 - 1
KERNELS_KEPT = 64  # a step has some 40 different ones


def bound_kernel_cache() -> None:
    """Limit how many kernels oneDNN and torch's own cache keep. Call it before the first is made; a user's own setting is kept.

    oneDNN makes one for every shape of the operands (of bf16 products, for example) and keeps 1,024, though hardly two training steps have
    the same shapes: a run's memory grew by a megabyte a step.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))
    # torch's binding has a cache of its own, which fills up where the CPU has bf16 products
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(KERNELS_KEPT))


def keep_freed_memory() -> bool:
    """Let freed blocks stay with the process; returns whether the C library supports it.

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


def release_freed_memory() -> bool:
    """Return every free page to the system, even from the middle of the heap; returns whether the C library supports it.

    Kept blocks of ever-changing sizes leave holes, so resident memory creeps up over thousands of steps, and the memory that a
    piece of work takes cannot be read from it. Fetching the pages back costs less than a step.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return False
    return bool(trim(0))
