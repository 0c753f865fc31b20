"""What a stage trains on: the whole corpus in every epoch, or one window of a stream at a time, labelled and then dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from workbench.cache.decoded_audio import AudioCache
from workbench.cache.teacher_targets import TargetCache
from workbench.cache.tensor_shards import ShardStore
from workbench.corpus import Utterance


@dataclass(frozen=True)
class LabelledDataset:
    """Clips with the teachers' targets of each."""

    utterances: list[Utterance]
    keys: list[str]  # of each clip's targets
    caches: list[TargetCache]  # one per teacher; weightings use the first one's loss
    audio: AudioCache
    audio_keys: list[str]
    encoded: ShardStore | None = None  # the student's encoder states, where they are computed once

    def taught_by(self, teachers: Sequence[int]) -> LabelledDataset:
        """The same clips with the targets of some teachers, by their numbers in `caches`."""
        return replace(self, caches=[self.caches[number] for number in teachers])

    def samples(self, clip: int) -> Tensor:
        """A clip's audio, by the clip's index. -> int16 [samples]"""
        return self.audio.read(self.audio_keys[clip])

    def teacher_losses(self) -> tuple[float, ...]:
        """The teacher's own loss on every clip."""
        return tuple(self.caches[0].task_loss(key) for key in self.keys)
