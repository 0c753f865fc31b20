"""Memory that a piece of work takes, and memory that the process keeps."""

import subprocess
import sys

import pytest
import torch

from workbench.memory import peak_of


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
@pytest.mark.parametrize("megabytes", [64, 256])
def test_the_peak_of_a_piece_of_work_is_what_it_allocates(megabytes):
    peak = peak_of(lambda: torch.ones(megabytes << 18).sum(), torch.device("cpu"))
    assert peak is not None
    assert not peak.failed
    assert 0.8 * (megabytes << 20) < peak.used < 1.3 * (megabytes << 20) + (32 << 20)
    assert peak.free > peak.used


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_stays_with_the_process():
    script = """
import resource, torch
from workbench.allocator import keep_freed_memory
kept = keep_freed_memory()
torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 24)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    kept, faults = map(int, done.stdout.split())
    if not kept:
        pytest.skip("this C library cannot be told")
    assert faults < 16_384  # 64 MiB in pages of 4 KiB: less than one of the ten blocks was fetched anew
