"""How much memory a piece of work takes at its peak, on a GPU or in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.machine.allocator import release_freed_memory

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Peak:
    """Memory of a piece of work."""

    used: int  # bytes on top of what was held before
    free: int  # bytes that were free before
    failed: bool = False  # it ran out of memory


def peak_of(work: Callable[[], None], device: torch.device) -> Peak | None:
    """Do the work and measure it; None if the system does not provide it (a CPU without /proc)."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before, free = torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)[0]
        try:
            work()
            torch.cuda.synchronize(device)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return Peak(free, free, failed=True)
        return Peak(torch.cuda.max_memory_allocated(device) - before, free)
    import psutil

    release_freed_memory()  # or the work would reuse pages that are counted already
    free = psutil.virtual_memory().available
    resident = resident_bytes()
    if resident is None or not reset_peak_resident():
        work()
        return None
    work()
    return Peak(max(0, (peak_resident_bytes() or resident) - resident), free)


def resident_bytes() -> int | None:
    """Resident memory of this process now."""
    return _status("VmRSS")


def peak_resident_bytes() -> int | None:
    """Largest resident memory of this process since it began, or since `reset_peak_resident`; None where the system does not report it."""
    # getrusage would count what the parent held when it forked; VmHWM is reset when the program starts
    if (peak := _status("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_resident_mb() -> float:
    """As `peak_resident_bytes`, in MB; 0 where the system does not report it."""
    return (peak_resident_bytes() or 0) / 1e6


def reset_peak_resident() -> bool:
    """Reset the peak; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(field + ":")), None)
    return int(found.split()[1]) * 1024 if found else None
