"""What a stage trains on at a time: the whole corpus again and again, or a window of a stream, labelled and then dropped."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.corpus import Utterance
from workbench.store import Store
from workbench.targets import TargetCache


@dataclass(frozen=True)
class Window:
    """Clips with the teacher's targets of each."""

    utterances: list[Utterance]
    keys: list[str]  # of each clip in the cache
    cache: TargetCache
    encoded: Store | None = None  # the student's encoder states, where they are computed once

    def teacher_losses(self) -> tuple[float, ...]:
        """The teacher's own loss on every clip."""
        return tuple(self.cache.task_loss(key) for key in self.keys)
