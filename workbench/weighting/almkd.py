"""ALM-KD (arXiv 2202.03250): a convex weight for each utterance, learnt on the validation set one step ahead.

    a_i <- clamp(a_i - step * d CE_validation(theta') / d a_i, 0, 1),   several times before an epoch, a_i drawn from U(0, 1)

where theta' is one gradient step of the output projection on sum_i [(1 - a_i) CE_i + a_i KL_i] (workbench/look_ahead.py).
Of several teachers each has its own share of a_i, equal at first (our interpretation; the paper has one).
"""

from __future__ import annotations

import hashlib

import torch
from pydantic import Field
from torch import Tensor

from workbench.look_ahead import Held, LearntWeights, LookAheadSettings, Probed, normalized, weight_gradients
from workbench.weighting.protocol import TeacherStatistics


class Settings(LookAheadSettings):
    """Options of ALM-KD. Published: every 10 of 200 epochs, 10 repeats, steps of 1000 times the rate on raw gradients."""

    first: int = Field(1, ge=0)
    repeats: int = Field(10, ge=1)
    initial: float | None = Field(
        None, ge=0, le=1, description="first a_i; drawn from U(0, 1) by default, as published"
    )


class ALMKD(LearntWeights):
    """One convex weight an utterance."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.first, settings.every)
        self.settings = settings

    def initial(self, name: str, losses: int) -> list[float]:
        """Drawn from the utterance's id, so that no order of utterances changes it."""
        alpha = self.settings.initial
        if alpha is None:
            alpha = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        return [1 - alpha, *[alpha / (losses - 1)] * (losses - 1)]

    def improved(self, batch: Probed, held: Held, weights: Tensor) -> Tensor:
        """Descend along a_i; with a = 1 - w_task, da acts on the task's weight with the opposite sign."""
        teachers = len(weights) - 1
        alpha = weights[1:]  # [teachers, utterances]
        for _ in range(self.settings.repeats):
            weights = _convex(alpha)
            slopes = weight_gradients(batch, held, weights, self.settings.rate)
            alpha = alpha - self.settings.step / teachers * normalized(
                slopes[1:] - slopes[0], self.settings.gradient_scale
            )
            alpha = alpha.clamp(0, 1)
            alpha = alpha / alpha.sum(0).clamp(min=1)  # of several teachers, together at most 1
        return _convex(alpha)


def _convex(alpha: Tensor) -> Tensor:
    """[teachers, utterances] -> [1 + teachers, utterances]"""
    return torch.cat([1 - alpha.sum(0, keepdim=True), alpha])


def build(settings: Settings, statistics: TeacherStatistics) -> ALMKD:
    """Build from a recipe's options."""
    return ALMKD(settings)
