"""AMAL, the successor of ALM-KD (its authors' code): independent weights of every loss and every teacher, learnt one step ahead.

    w <- clamp(w - step * d CE_validation(theta') / dw, 1e-7, 2 - 1e-7)

for the task loss and for each teacher's distillation loss of every utterance (workbench/weighting/meta_gradients.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from workbench.weighting.meta_batches import TrainBatch, ValidationBatch
from workbench.weighting.meta_gradients import LookAheadSettings, MetaLearnedWeighting, normalized, outer_gradients
from workbench.weighting.protocol import TeacherStatistics

LEAST, MOST = 1e-7, 2 - 1e-7

LOOKS_AHEAD = True  # learns its weights on the meta or the validation split


class Settings(LookAheadSettings):
    """Options of AMAL. Published: every 10 of 200 epochs from epoch 10 on, 5 updates, steps of 1500 on raw gradients."""

    EARLIER: ClassVar = {
        **LookAheadSettings.EARLIER,
        "task": "initial_task_weight",
        "distillation": "initial_distillation_weight",
    }  # names of earlier versions

    start_epoch: int = Field(10, ge=0)
    steps_per_update: int = Field(5, ge=1)
    initial_task_weight: float = Field(0.1, ge=0, le=2, description="initial weight of the task loss")
    initial_distillation_weight: float = Field(0.9, ge=0, le=2, description="initial weight of all teachers together")


class AMAL(MetaLearnedWeighting):
    """One weight for each loss of an utterance."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.start_epoch, settings.update_every)
        self.settings = settings

    def initial(self, name: str, losses: int) -> list[float]:
        """The same for every utterance; teachers share theirs."""
        return [
            self.settings.initial_task_weight,
            *[self.settings.initial_distillation_weight / (losses - 1)] * (losses - 1),
        ]

    def updated_weights(
        self, batch: TrainBatch, outer: Sequence[ValidationBatch], weights: Tensor, learning_rate: float
    ) -> Tensor:
        """Descend along every weight independently."""
        rate = self.settings.look_ahead_rate(learning_rate)
        for _ in range(self.settings.steps_per_update):
            slopes = outer_gradients(batch, outer, weights, rate)
            weights = weights - self.settings.weight_learning_rate * normalized(slopes, self.settings.gradient_scale)
            weights = weights.clamp(LEAST, MOST)
        return weights


def build(settings: Settings, statistics: TeacherStatistics) -> AMAL:
    """Build from a recipe's options."""
    return AMAL(settings)
