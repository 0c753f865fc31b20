"""AMAL, the successor of ALM-KD (its authors' code): independent weights of every loss and every teacher, learnt one step ahead.

    w <- clamp(w - step * d CE_validation(theta') / dw, 1e-7, 2 - 1e-7)

for the task loss and for each teacher's distillation loss of every utterance (workbench/look_ahead.py).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from workbench.look_ahead import Held, LearntWeights, Probed, normalized, weight_gradients
from workbench.weighting.protocol import TeacherStatistics

LEAST, MOST = 1e-7, 2 - 1e-7


class Settings(BaseModel):
    """Options of AMAL. Published: every 10 of 200 epochs from epoch 10 on, 5 repeats, steps of 1500 on raw gradients."""

    model_config = ConfigDict(extra="forbid")
    first: int = Field(10, ge=0, description="epoch (from 0) before which weights are learnt first")
    every: int = Field(10, ge=1, description="epochs between updates")
    repeats: int = Field(5, ge=1, description="steps of the weights in one update")
    rate: float = Field(1e-3, gt=0, description="[our interpretation] of the look-ahead step of the projection")
    step: float = Field(0.1, gt=0, description="of the weights")
    gradient_scale: Literal["raw", "rms"] = Field(
        "rms",
        description="[our interpretation] rms divides by the batch's root mean square, so one step fits every model",
    )
    task: float = Field(0.1, ge=0, le=2, description="first weight of the task loss")
    distillation: float = Field(0.9, ge=0, le=2, description="first weight of all teachers together")


class AMAL(LearntWeights):
    """One weight for each loss of an utterance."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.first, settings.every)
        self.settings = settings

    def initial(self, name: str, losses: int) -> list[float]:
        """The same for every utterance; teachers share theirs."""
        return [self.settings.task, *[self.settings.distillation / (losses - 1)] * (losses - 1)]

    def improved(self, batch: Probed, held: Held, weights: Tensor) -> Tensor:
        """Descend along every weight for itself."""
        for _ in range(self.settings.repeats):
            slopes = weight_gradients(batch, held, weights, self.settings.rate)
            weights = weights - self.settings.step * normalized(slopes, self.settings.gradient_scale)
            weights = weights.clamp(LEAST, MOST)
        return weights


def build(settings: Settings, statistics: TeacherStatistics) -> AMAL:
    """Build from a recipe's options."""
    return AMAL(settings)
