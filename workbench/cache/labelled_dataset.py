"""What a stage trains on at a time: the whole corpus again and again, or a window of a stream, labelled and then dropped."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.cache.teacher_targets import TargetCache
from workbench.cache.tensor_shards import Store
from workbench.corpus import Utterance


@dataclass(frozen=True)
class LabelledDataset:
    """Clips with the teachers' targets of each."""

    utterances: list[Utterance]
    keys: list[str]  # of each clip in the cache
    caches: list[TargetCache]  # of each teacher; the first one's loss is what weightings go by
    encoded: Store | None = None  # the student's encoder states, where they are computed once

    def teacher_losses(self) -> tuple[float, ...]:
        """The teacher's own loss on every clip."""
        return tuple(self.caches[0].task_loss(key) for key in self.keys)
