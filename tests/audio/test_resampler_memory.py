"""The resampler's memory follows neither the length of a block nor the length of its filter."""

import tracemalloc

import numpy as np
import pytest

from export.edge.audio.resample import resample


@pytest.mark.parametrize("rate", [48_000, 192_000, 768_000])
def test_memory_does_not_grow_with_the_sample_rate(rate):
    samples = np.zeros(rate // 2, np.float32)
    tracemalloc.start()
    try:
        resample(samples, rate)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6
