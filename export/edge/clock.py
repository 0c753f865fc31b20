"""How long the stages of a transcription took."""

from __future__ import annotations

import time


class Clock:
    """Wall-clock time of consecutive stages, in ms; times of a stage add up."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.at = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + 1000 * (now - self.at)
        self.at = now
