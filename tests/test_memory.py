"""Memory that a piece of work takes, and memory that the process keeps."""

import platform
import subprocess
import sys

import pytest

PEAK = """
import sys, torch
from workbench.memory import peak_of
peak = peak_of(lambda: torch.ones(int(sys.argv[1]) << 18).sum(), torch.device("cpu"))
print(int(peak.failed), peak.used, peak.free)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
@pytest.mark.parametrize("megabytes", [64, 256])
def test_the_peak_of_a_piece_of_work_is_what_it_allocates(megabytes):
    # a process of its own: in this one freed memory may have been kept, and be used again
    done = subprocess.run([sys.executable, "-c", PEAK, str(megabytes)], capture_output=True, text=True, check=True)
    failed, used, free = map(int, done.stdout.split())
    assert not failed
    assert 0.8 * (megabytes << 20) < used < 1.3 * (megabytes << 20) + (32 << 20)
    assert free > used


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's mallopt")
def test_glibc_is_told_to_keep_freed_memory():
    script = "from workbench.allocator import keep_freed_memory; print(keep_freed_memory())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
