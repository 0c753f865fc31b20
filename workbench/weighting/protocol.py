"""The interface between training and the weighting systems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from workbench.config.sections import DivergenceRecipe
from workbench.weighting.meta_batches import MetaBatches


def _nothing() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True, kw_only=True)
class WeightingInput:
    """What a weighting sees of a micro-batch. All tensors are detached; labels are flattened, in order of utterance."""

    ids: Sequence[str]  # of the utterances, the key of any state
    task: Tensor  # task losses l_i [utterances]
    distillation: Tensor  # distillation losses d_i [utterances]; for several teachers, their mean by share
    teacher_loss: Tensor  # the first teacher's own task losses x_i [utterances]
    progress: float  # share of the stage's steps done, in [0, 1]
    epoch: int = 0
    epochs: int = 1
    by_teacher: Tensor = field(default_factory=_nothing)  # distillation losses [teachers, utterances]
    utterance_index: Tensor = field(default_factory=_nothing)  # int64 [labels]: utterance of each label
    teacher_right: Tensor = field(default_factory=_nothing)  # bool [labels]: its likeliest token is the label

    @property
    def epoch_progress(self) -> float:
        """Share of the epochs done, 0 in the first and 1 in the last."""
        return self.epoch / max(self.epochs - 1, 1)


@dataclass(frozen=True)
class Weights:
    """Factors of both losses; the batch loss is mean_i(task_i * l_i + distillation_i * d_i).

    Shapes are [utterances]; `distillation` may be [teachers, utterances]; with `by_token` both are [labels] and weigh the
    losses of single tokens before these are averaged within their utterance. What `log` holds is averaged over the step's
    utterances for metrics.jsonl; its names must be listed in `Weighting.log_names`.
    """

    task: Tensor
    distillation: Tensor
    log: dict[str, float | Tensor] = field(default_factory=dict)  # one number for all, or [utterances]
    by_token: bool = False


@dataclass(frozen=True)
class TeacherStatistics:
    """The teacher's statistics over the whole training set."""

    losses: tuple[float, ...]  # its own task losses: what a weighting's threshold is taken from
    uncertainty: Mapping[str, float] | None = None  # by utterance id, where the weighting needs it

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


@dataclass(frozen=True)
class SelfTeacherSettings:
    """Which earlier or averaged version of itself the student learns from, and how."""

    kind: Literal["ema", "snapshot", "previous_epoch", "intermediate"]
    decay: float = 0.999  # for `ema`: decay of the average
    layer: int = 0  # for `intermediate`: number of the decoder layer that the last one teaches
    temperature: float = 1.0


class Weighting:
    """Weighs each utterance's task loss against its distillation loss.

    A system implements `__call__` and whichever of the hooks it needs; the others do nothing. `__call__` must not change
    any state: it is also called for placeholder micro-batches, whose clips belong to another process. `observe` is not.
    """

    log_names: tuple[str, ...] = ()  # names in `Weights.log`; all processes average the same ones
    meta_learned: bool = False  # whether it learns weights by looking ahead on the meta or the validation split
    seed: int = 0  # of the run, for whatever a system draws at random; set by `build_weighting`

    def __call__(self, inputs: WeightingInput) -> Weights:
        """Compute the weights of a micro-batch."""
        raise NotImplementedError

    def observe(self, inputs: WeightingInput) -> None:
        """Called after `__call__` with each micro-batch that counts in the step's loss; not called for on-policy ones."""

    def on_optimizer_step(self, total: Callable[[Tensor], Tensor]) -> None:
        """Called after each optimizer step; `total` sums a tensor over the processes, all of which must call it."""

    def divergence(self, chosen: DivergenceRecipe, progress: float) -> DivergenceRecipe:
        """Distillation loss at a given progress: the recipe's, unless the weighting defines its own."""
        return chosen

    @property
    def self_teacher(self) -> SelfTeacherSettings | None:
        """The self-teacher that the student will learn from at some point, or None."""
        return None

    def is_self_distilling(self, progress: float) -> bool:
        """Whether the self-teacher replaces the teacher at a progress."""
        return False

    def should_look_ahead(self, epoch: int, learning_rate: float) -> bool:
        """Whether `look_ahead` is wanted before an epoch, which begins with this learning rate of the optimizer."""
        return False

    def look_ahead(self, meta_batches: MetaBatches) -> None:
        """Learn from the gradients of training and validation utterances; see `meta_batches.MetaBatches`."""

    def nothing_learnt(self) -> str | None:
        """At the end of a stage: why it never learnt anything, and what to do; None if it did, or does not learn."""
        return None

    def state_dict(self) -> dict[str, object]:
        """State to checkpoint, as JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


def convex(alpha: Tensor, **log: float) -> Weights:
    """Weights 1 - alpha and alpha, which is how the papers write the loss."""
    return Weights(1 - alpha, alpha, dict(log))


def full_like(losses: Tensor, value: float) -> Tensor:
    """A constant for each utterance, in fp32 on the losses' device."""
    return torch.full_like(losses, value, dtype=torch.float32)
