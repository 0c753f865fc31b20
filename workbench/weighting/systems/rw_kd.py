"""RW-KD: sample-wise re-weighting of both losses by meta-learning (Lu et al., EMNLP Findings 2021).

Our interpretation follows learning to re-weight (Ren et al. 2018, arXiv 1803.09050): from weights of zero, the weights take one step
against d CE_validation / dw, are clipped at zero, and normalised to a mean of 1 over a micro-batch's utterances. The gradients are those of
the output projection alone, and weights are learnt before an epoch, not in every
step (workbench/weighting/meta_gradients.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from workbench.config.weightings import StageSchedule, WeightingSettings
from workbench.weighting.meta_batches import TrainBatch, ValidationBatch
from workbench.weighting.meta_gradients import MetaLearnedWeighting, outer_gradients, start_epoch_problem
from workbench.weighting.protocol import TeacherStatistics

LOOKS_AHEAD = True  # learns its weights on the meta or the validation split


class Settings(WeightingSettings):
    """Options of RW-KD."""

    EARLIER: ClassVar = {"first": "start_epoch", "every": "update_every"}  # names of earlier versions

    start_epoch: int = Field(0, ge=0, description="epoch (from 0) before which weights are learnt for the first time")
    update_every: int = Field(1, ge=1, description="epochs between updates")

    def inactive_reason(self, stage: StageSchedule) -> str | None:
        """As for every weighting, or because the first update's epoch is never reached."""
        return start_epoch_problem(self.start_epoch, stage) or super().inactive_reason(stage)


class RWKD(MetaLearnedWeighting):
    """Weights that are kept until the next update, which starts from scratch."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.start_epoch, settings.update_every)

    def initial(self, name: str, losses: int) -> list[float]:
        """Half the task loss, half the teachers'."""
        return [0.5, *[0.5 / (losses - 1)] * (losses - 1)]

    def updated_weights(
        self, batch: TrainBatch, outer: Sequence[ValidationBatch], weights: Tensor, learning_rate: float
    ) -> Tensor:
        """Weights in proportion to how much a loss helps the validation utterances; unchanged if none helps."""
        # at weights of zero the look-ahead does not move, so its size is a mere factor that normalising takes out
        helpful = (-outer_gradients(batch, outer, torch.zeros_like(weights), 1.0)).clamp(min=0)
        total = helpful.sum()
        return weights if total == 0 else helpful * (weights.shape[1] / total)


def build(settings: Settings, statistics: TeacherStatistics) -> RWKD:
    """Build from a recipe's options."""
    return RWKD(settings)
