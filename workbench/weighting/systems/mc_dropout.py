"""Fixed-weight distillation that leans less on the teacher where the teacher is unsure of itself.

The teacher's decoder runs several times with dropout (Gal and Ghahramani 2016, arXiv 1506.02142); an utterance's uncertainty
u_i is the mean, over its labels, of the mutual information between prediction and dropout mask (workbench/cache/uncertainty.py).

    a_i = alpha * exp(-u_i / mean(u))        [our interpretation: the sources weight by uncertainty in many ways]
"""

from __future__ import annotations

import math

import numpy as np
import torch
from pydantic import Field

from workbench.config.weightings import WeightingSettings
from workbench.core.errors import UserError
from workbench.weighting.protocol import TeacherStatistics, Weighting, WeightingInput, Weights, convex

NEEDS_UNCERTAINTY = True  # read by config/weightings.py: the teacher's is measured before training


class Settings(WeightingSettings):
    """Options of uncertainty weighting."""

    alpha: float = Field(1.0, ge=0, le=1, description="weight of distillation where the teacher is certain")


class MCDropout(Weighting):
    """Weights from the teacher's uncertainty, fixed over training."""

    def __init__(self, settings: Settings, statistics: TeacherStatistics) -> None:
        """Bind the measured uncertainties; raises UserError if they are all equal, so that the weighting would have no effect."""
        self.settings, self.uncertainty = settings, statistics.uncertainty or {}
        values = list(self.uncertainty.values()) or [0.0]
        if max(values) == min(values) and len(values) > 1:
            raise UserError(
                f"weighting mc_dropout would have no effect: the teacher's uncertainty is {values[0]:.3g} for every one of "
                f"{len(values)} utterances; use {{name: fixed, alpha: ...}}"
            )
        self.mean = float(np.mean(values)) or 1.0

    def __call__(self, inputs: WeightingInput) -> Weights:
        """Weight each utterance by how sure the teacher is of it."""
        alpha = [self.settings.alpha * math.exp(-self.uncertainty[name] / self.mean) for name in inputs.ids]
        return convex(torch.tensor(alpha, device=inputs.task.device))


def build(settings: Settings, statistics: TeacherStatistics) -> MCDropout:
    """Build from a recipe's options."""
    return MCDropout(settings, statistics)
