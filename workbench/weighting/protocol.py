"""The seam between training and the weighting systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """Factors of both losses of each utterance; the batch loss is mean(task * l + distillation * d)."""

    task: Tensor  # [utterances]
    distillation: Tensor  # [utterances]
    log: dict[str, float] = field(default_factory=dict)  # scalars for metrics.jsonl


@dataclass(frozen=True)
class TeacherStatistics:
    """The teacher's own task losses over the training set: what a weighting's threshold is taken from."""

    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean loss."""
        return float(np.mean(self.losses))

    @property
    def std(self) -> float:
        """Standard deviation of the losses."""
        return float(np.std(self.losses))

    def percentile(self, q: float) -> float:
        """Percentile q in [0, 100] of the losses."""
        return float(np.percentile(self.losses, q))


class Weighting(Protocol):
    """Weighs each utterance's task loss against its distillation loss."""

    def __call__(
        self, ids: Sequence[str], task: Tensor, distillation: Tensor, teacher: Tensor, progress: float
    ) -> Weights:
        """Weigh a batch.

        Args:
            ids: utterance ids, the key of any state.
            task: detached task losses l_i [utterances].
            distillation: detached distillation losses d_i [utterances].
            teacher: the teacher's own task losses x_i [utterances].
            progress: share of the training steps done, in [0, 1].
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """State to checkpoint, as JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


class Stateless:
    """Base of weightings that keep nothing between batches."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def convex(alpha: Tensor, **log: float) -> Weights:
    """Weights 1 - alpha and alpha, which is how the papers write the loss."""
    return Weights(1 - alpha, alpha, {"alpha_mean": float(alpha.mean()), **log})


def full_like(losses: Tensor, value: float) -> Tensor:
    """A constant for each utterance, in fp32 on the losses' device."""
    return torch.full_like(losses, value, dtype=torch.float32)
