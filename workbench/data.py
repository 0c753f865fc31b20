"""Clips and their targets as training batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from workbench.audio import SAMPLE_RATE, Wave
from workbench.corpus import Utterance
from workbench.families.log_mel import positions_of
from workbench.families.protocol import Family, Tokens
from workbench.targets import ClipTargets, TargetCache, TargetSettings


@dataclass(frozen=True)
class Batch:
    """One training batch. Labelled positions of all utterances lie flat, in order of utterance and position."""

    ids: list[str]
    waves: list[Wave]
    seconds: float  # of the longest clip, without margin
    inputs: Tensor  # int64 [utterances, tokens]
    labels: Tensor  # int64 [utterances, tokens]
    owner: Tensor  # int64 [labels]: utterance of each labelled position
    states: Tensor  # fp32 [utterances, positions, width]: the teacher's, zero-padded
    frames: Tensor  # int64 [utterances]: positions that are not padding
    top_ids: Tensor  # int64 [labels, k]
    top_logits: Tensor  # fp32 [labels, k]
    log_normalizer: Tensor  # fp32 [labels]
    teacher_loss: Tensor  # fp32 [utterances]

    @property
    def tokens(self) -> Tokens:
        """Decoder inputs and labels."""
        return Tokens(self.inputs, self.labels)

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to a device; from pinned memory the copies do not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by torch's DataLoader when it pins."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


class Clips(Dataset[tuple[Utterance, Wave, ClipTargets]]):
    """Utterances with their decoded audio, kept as int16 after the first reading, and their targets."""

    def __init__(self, utterances: Sequence[Utterance], cache: TargetCache, settings: TargetSettings) -> None:
        self.utterances, self.cache = utterances, cache
        self.keys = [settings.key(u) for u in utterances]
        self.decoded: dict[int, np.ndarray[tuple[int], np.dtype[np.int16]]] = {}

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, i: int) -> tuple[Utterance, Wave, ClipTargets]:
        if i not in self.decoded:
            wave = self.utterances[i].wave()
            self.decoded[i] = (np.clip(wave, -1, 1) * 32767).round().astype(np.int16)
        return self.utterances[i], self.decoded[i].astype(np.float32) / np.float32(32767), self.cache.read(self.keys[i])

    def teacher_losses(self) -> tuple[float, ...]:
        """The teacher's own loss on every clip."""
        return tuple(self.cache.task_loss(key) for key in self.keys)


@dataclass(frozen=True)
class Collate:
    """Turn clips into a batch."""

    family: Family

    def __call__(self, clips: Sequence[tuple[Utterance, Wave, ClipTargets]]) -> Batch:
        """Pad and stack."""
        utterances, waves, targets = zip(*clips, strict=True)
        tokens = self.family.tokens([u.text for u in utterances], [u.language for u in utterances])
        counts = torch.tensor([len(t.log_normalizer) for t in targets])
        return Batch(
            ids=[u.id for u in utterances],
            waves=list(waves),
            seconds=max(len(wave) for wave in waves) / SAMPLE_RATE,
            inputs=tokens.inputs,
            labels=tokens.labels,
            owner=torch.repeat_interleave(torch.arange(len(utterances)), counts),
            states=torch.nn.utils.rnn.pad_sequence([t.states.float() for t in targets], batch_first=True),
            frames=torch.tensor([len(t.states) for t in targets]),
            top_ids=torch.cat([t.top_ids for t in targets]).long(),
            top_logits=torch.cat([t.top_logits for t in targets]),
            log_normalizer=torch.cat([t.log_normalizer for t in targets]),
            teacher_loss=torch.tensor([t.task_loss for t in targets]),
        )


def padded_seconds(batch: Batch, margin: float, window: float) -> float:
    """Length that a batch's clips are padded to, at most the family's window; a whole number of encoder positions."""
    positions = positions_of(round((batch.seconds + margin) * SAMPLE_RATE))
    return min(positions * 0.02, window)
