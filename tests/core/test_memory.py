"""Memory that a piece of work takes, and memory that the process keeps."""

import platform
import subprocess
import sys

import pytest

PEAK = """
import sys, torch
from workbench.core.machine.allocator import keep_freed_memory
from workbench.core.machine.memory import peak_of
if sys.argv[2] == "kept":  # as in a training run, where the steps before have left such pages
    keep_freed_memory()
    torch.ones(512 << 18).sum()
peak = peak_of(lambda: torch.ones(int(sys.argv[1]) << 18).sum(), torch.device("cpu"))
print(int(peak.failed), peak.used, peak.free)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
@pytest.mark.parametrize(("megabytes", "before"), [(64, "fresh"), (256, "fresh"), (256, "kept")])
def test_the_peak_of_a_piece_of_work_is_what_it_allocates(megabytes, before):
    command = [sys.executable, "-c", PEAK, str(megabytes), before]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    failed, used, free = map(int, done.stdout.split())
    assert not failed
    assert 0.8 * (megabytes << 20) < used < 1.3 * (megabytes << 20) + (32 << 20)
    assert free > used


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's mallopt")
def test_glibc_is_told_to_keep_freed_memory():
    script = "from workbench.core.machine.allocator import keep_freed_memory; print(keep_freed_memory())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


SHAPES = """
import torch
from workbench.core.machine.allocator import bound_kernel_cache, release_freed_memory
from workbench.models.whisper.forward.convolution import convolve
from workbench.core.machine.memory import resident_bytes
bound_kernel_cache()
torch.set_num_threads(1)
layer, dense = torch.nn.Conv1d(16, 16, 3, padding=1), torch.nn.Linear(16, 16).bfloat16()
def steps(lengths):
    for n in lengths:
        out = convolve(layer, torch.zeros(2, 16, n)).transpose(1, 2)
        dense(out.bfloat16()).sum().backward()
    release_freed_memory()
    return resident_bytes()
before = steps(range(100, 300))
print(steps(range(300, 800)) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the resident memory")
def test_memory_does_not_grow_with_the_number_of_shapes_seen():
    done = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 << 20  # torch's own way: 25 MB
