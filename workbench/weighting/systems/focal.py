"""Focal loss on utterances (Lin et al. 2017, arXiv 1708.02002), beside or over a fixed weight.

The focal loss of a loss L is F(L) = (1 - exp(-L))^gamma * L: easy utterances count for less. Our interpretation: L is
an utterance's loss, not a token's, so that it is comparable with the other systems; AdaKD's paper, which has
it as a baseline, does not say.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from workbench.config.weightings import WeightingSettings
from workbench.weighting.protocol import TeacherStatistics, Weighting, WeightingInput, Weights


class Settings(WeightingSettings):
    """Options of the focal loss."""

    gamma: float = Field(2.0, ge=0, description="0 is the fixed weight alone")
    alpha: float = Field(0.5, ge=0, le=1, description="L = (1 - alpha) * task + alpha * distillation")


class Focal(Weighting):
    """Factor dF/dL of each utterance: its gradient is then that of the focal loss, (1 - p)^gamma being differentiated too."""

    log_names = ("factor_mean",)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, inputs: WeightingInput) -> Weights:
        """Weight each utterance by the slope of its focal loss."""
        alpha = self.settings.alpha
        factor = slope((1 - alpha) * inputs.task + alpha * inputs.distillation, self.settings.gamma)
        return Weights((1 - alpha) * factor, alpha * factor, {"factor_mean": factor})


def slope(loss: Tensor, gamma: float) -> Tensor:
    """dF/dL = (1 - p)^gamma + gamma * L * p * (1 - p)^(gamma - 1) with p = exp(-L). [utterances] -> [utterances]"""
    p = torch.exp(-loss.float())
    missing = (1 - p).clamp(min=torch.finfo(torch.float32).tiny)  # gamma below 1 would divide by zero at L = 0
    return missing**gamma + gamma * loss * p * missing ** (gamma - 1)


def build(settings: Settings, statistics: TeacherStatistics) -> Focal:
    """Build from a recipe's options."""
    return Focal(settings)
