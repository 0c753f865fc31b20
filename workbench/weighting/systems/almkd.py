"""ALM-KD (arXiv 2202.03250): a convex weight for each utterance, learnt on the validation set one step ahead.

    a_i <- clamp(a_i - step * d L_outer(theta') / d a_i),   several times before an epoch, a_i drawn from U(0, 1)

where theta' is one gradient step of the output projection on sum_i [(1 - a_i) CE_i + a_i KL_i] (workbench/weighting/meta_gradients.py), and
L_outer is the validation cross-entropy or, as the authors' training script has it, 0.75 of it and 0.25 of the training one.
Of several teachers each has its own share of a_i, equal at first (our interpretation; the paper has one).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.weighting.meta_batches import TrainBatch, ValidationBatch
from workbench.weighting.meta_gradients import LearntWeights, LookAheadSettings, normalized, outer_gradients
from workbench.weighting.protocol import TeacherStatistics


class Settings(LookAheadSettings):
    """Options of ALM-KD. By default our interpretation; docs/weightings.md has the authors' values of all of them."""

    first: int = Field(1, ge=0, description="epoch (from 0) before which weights are learnt first; the authors: 0")
    repeats: int = Field(10, ge=1, description="steps of the weights in one update, 10 as published")
    initial: float | None = Field(
        None, ge=0, le=1, description="first a_i; drawn from U(0, 1) by default, as published"
    )
    step_per_learning_rate: float | None = Field(
        None,
        gt=0,
        description="step of the weights as a multiple of the optimizer's learning rate, in place of `step`; the authors: 2000",
    )
    train_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training micro-batch's cross-entropy in the outer loss; the authors: 0.25",
    )
    validation: Literal["batch", "whole"] = Field(
        "batch",
        description="validation utterances that a micro-batch is looked ahead with: a batch, in turn, or all; the authors: whole",
    )
    at_rate_change: bool = Field(
        False,
        description="also learn where the learning rate has changed since weights were last learnt; the authors: true",
    )
    smallest: float = Field(
        0.0, ge=0, lt=0.5, description="a_i is kept within [smallest, 1 - smallest]; the authors: 1e-7"
    )


class ALMKD(LearntWeights):
    """One convex weight an utterance."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.first, settings.every)
        self.settings = settings
        self.whole_validation = settings.validation == "whole"
        self.at_rate_change = settings.at_rate_change

    def initial(self, name: str, losses: int) -> list[float]:
        """Drawn by the run's seed and the utterance's id, so that no order of utterances changes it."""
        alpha = self.settings.initial
        if alpha is None:
            digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
            alpha = int.from_bytes(digest[:8], "big") / 2**64
        return [1 - alpha, *[alpha / (losses - 1)] * (losses - 1)]

    def improved(
        self, batch: TrainBatch, outer: Sequence[ValidationBatch], weights: Tensor, learning_rate: float
    ) -> Tensor:
        """Descend along a_i; with a = 1 - w_task, da acts on the task's weight with the opposite sign."""
        settings, teachers = self.settings, len(weights) - 1
        rate, step = settings.look_ahead_rate(learning_rate), settings.step
        if settings.step_per_learning_rate is not None:
            step = settings.step_per_learning_rate * learning_rate
        largest = 1 - settings.smallest
        alpha = weights[1:]  # [teachers, utterances]
        for _ in range(settings.repeats):
            slopes = outer_gradients(batch, outer, _convex(alpha), rate, settings.train_share)
            alpha = alpha - step / teachers * normalized(slopes[1:] - slopes[0], settings.gradient_scale)
            alpha = alpha.clamp(settings.smallest, largest)
            alpha = alpha / (alpha.sum(0) / largest).clamp(min=1)  # of several teachers, together at most that
        return _convex(alpha)


def _convex(alpha: Tensor) -> Tensor:
    """[teachers, utterances] -> [1 + teachers, utterances]"""
    return torch.cat([1 - alpha.sum(0, keepdim=True), alpha])


def build(settings: Settings, statistics: TeacherStatistics) -> ALMKD:
    """Build from a recipe's options."""
    return ALMKD(settings)
