"""Time systems on utterances. Separate from latency.py because the timed processes import that."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from export.measurement.latency import BenchmarkResult, System, time_systems
from workbench.audio.decode import write_wav
from workbench.core.progress import Progress, step
from workbench.corpus import Utterance


def time_on(
    systems: Sequence[System], utterances: Sequence[Utterance], threads: int, repeats: int = 1
) -> list[BenchmarkResult]:
    """Time systems on a corpus's clips, interleaved (see `time_systems`)."""
    with tempfile.TemporaryDirectory() as temporary:
        wavs = []
        with step("reading %d clips", len(utterances)):
            for i, utterance in enumerate(utterances):
                wavs.append((Path(temporary) / f"{i}.wav", utterance.language))
                write_wav(wavs[-1][0], utterance.wave())
        with Progress("measuring", len(utterances) * len(systems) * repeats) as progress:
            return time_systems(systems, wavs, threads, repeats=repeats, progress=lambda n: progress.advance(n))
