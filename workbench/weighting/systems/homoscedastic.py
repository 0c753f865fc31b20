"""Homoscedastic uncertainty weighting (Kendall et al., CVPR 2018, arXiv 1705.07115): both losses' noise is learnt.

    L = exp(-s) * l + s / 2 + exp(-v) * d + v / 2,   s and v learnt by gradient descent beside the student

(for classification likelihoods; s and v are log-variances). Not instance-level: all utterances of a step share s and v.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from workbench.config.weightings import WeightingSettings
from workbench.weighting.protocol import TeacherStatistics, Weighting, WeightingInput, Weights, full_like

WEIGHTS_ALIKE = True  # all utterances of a step


class Settings(WeightingSettings):
    """Options of homoscedastic weighting."""

    learning_rate: float = Field(
        0.02, gt=0, description="[our interpretation] learning rate of both log-variances, plain SGD"
    )


class Homoscedastic(Weighting):
    """One learnt factor per loss."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log_variances = [0.0, 0.0]  # of task and distillation
        self._seen: list[Tensor] = []

    def __call__(self, inputs: WeightingInput) -> Weights:
        """Weight every utterance alike, by the learnt precisions."""
        task, distillation = (math.exp(-s) for s in self.log_variances)
        return Weights(full_like(inputs.task, task), full_like(inputs.task, distillation))

    def observe(self, inputs: WeightingInput) -> None:
        """Add a micro-batch's losses to the step's."""
        losses = torch.stack([inputs.task.float(), inputs.distillation.float(), torch.ones_like(inputs.task)])
        self._seen.append(losses.sum(1))

    def on_optimizer_step(self, total: Callable[[Tensor], Tensor]) -> None:
        """Descend: dL/ds = 1/2 - exp(-s) * mean loss of the whole step, unless it had no loss to weigh (on-policy)."""
        *sums, count = total(torch.stack(self._seen).sum(0) if self._seen else torch.zeros(3)).tolist()
        self._seen = []
        if count == 0:
            return
        for i, loss in enumerate(sums):
            slope = 0.5 - math.exp(-self.log_variances[i]) * loss / count
            self.log_variances[i] -= self.settings.learning_rate * slope

    def state_dict(self) -> dict[str, object]:
        """Both log-variances."""
        return {"log_variances": self.log_variances}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.log_variances = list(state["log_variances"])


def build(settings: Settings, statistics: TeacherStatistics) -> Homoscedastic:
    """Build from a recipe's options."""
    return Homoscedastic(settings)
