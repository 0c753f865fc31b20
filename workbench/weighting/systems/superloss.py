"""SuperLoss (Castells et al., NeurIPS 2020): a curriculum by the loss itself, in which hard utterances are down-weighted.

    min over s of (L - t) * s + lambda * log(s)^2,   s = exp(-W(max(-2/e, (L - t) / lambda) / 2))

with Lambert's W. At the minimum the derivative with respect to L is s (envelope theorem), so s is the factor of the
utterance's gradient. Our interpretation: L is the fixed-weight distillation loss of the utterance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from workbench.config.weightings import WeightingSettings
from workbench.weighting.protocol import TeacherStatistics, Weighting, WeightingInput, Weights


class Settings(WeightingSettings):
    """Options of SuperLoss."""

    regularization: float = Field(1.0, gt=0, description="lambda; large values weight all utterances alike")
    alpha: float = Field(0.5, ge=0, le=1, description="L = (1 - alpha) * task + alpha * distillation")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of t, the running mean of L over steps")


class SuperLoss(Weighting):
    """Factors from the distance to the running mean of the losses."""

    log_names = ("factor_mean", "t")

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.threshold: float | None = None  # t, from the first step on
        self._seen: list[Tensor] = []

    def __call__(self, inputs: WeightingInput) -> Weights:
        """Weight each utterance; in the very first step t is the micro-batch's own mean."""
        alpha, loss = self.settings.alpha, self._loss(inputs)
        threshold = float(loss.mean()) if self.threshold is None else self.threshold
        factor = confidence(loss - threshold, self.settings.regularization)
        return Weights((1 - alpha) * factor, alpha * factor, {"factor_mean": factor, "t": threshold})

    def observe(self, inputs: WeightingInput) -> None:
        """Add a micro-batch's losses to the step's."""
        loss = self._loss(inputs)
        self._seen.append(torch.stack([loss.sum(), torch.ones_like(loss).sum()]))

    def on_optimizer_step(self, total: Callable[[Tensor], Tensor]) -> None:
        """Move t towards the mean of the whole step, unless it had no loss to weigh (on-policy)."""
        summed, count = total(torch.stack(self._seen).sum(0) if self._seen else torch.zeros(2)).tolist()
        self._seen = []
        if count == 0:
            return
        mean, momentum = summed / count, self.settings.momentum
        self.threshold = mean if self.threshold is None else momentum * self.threshold + (1 - momentum) * mean

    def _loss(self, inputs: WeightingInput) -> Tensor:
        alpha = self.settings.alpha
        return (1 - alpha) * inputs.task.float() + alpha * inputs.distillation.float()

    def state_dict(self) -> dict[str, object]:
        """The threshold."""
        return {"threshold": self.threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.threshold = state["threshold"]


def confidence(excess: Tensor, regularization: float) -> Tensor:
    """The factor s of each utterance from L - t. [utterances] -> [utterances], in (0, e]"""
    beta = (excess.double() / regularization).clamp(min=-2 / math.e)
    return torch.exp(-lambert_w(beta / 2)).float()


def lambert_w(x: Tensor) -> Tensor:
    """Principal branch of Lambert's W, w * exp(w) = x, for x >= -1/e, by Halley's method in fp64."""
    near_branch_point = -1 + torch.sqrt((2 * (math.e * x + 1)).clamp(min=0))
    w = torch.where(x < 0, near_branch_point, torch.log1p(x.clamp(min=0)))
    for _ in range(20):
        e = torch.exp(w)
        error = w * e - x
        step = e * (w + 1) - (w + 2) * error / (2 * w + 2).clamp(min=1e-12)
        w = torch.where(step.abs() > 1e-12, w - error / step, w)
    return w


def build(settings: Settings, statistics: TeacherStatistics) -> SuperLoss:
    """Build from a recipe's options."""
    return SuperLoss(settings)
