"""ALM-KD (arXiv 2202.03250): a convex weight for each utterance, learnt on the validation set one step ahead.

    a_i <- clamp(a_i - step * d L_outer(theta') / d a_i),   several times before an epoch, a_i drawn from U(0, 1)

where theta' is one gradient step of the output projection on sum_i [(1 - a_i) CE_i + a_i KL_i] (workbench/weighting/meta_gradients.py), and
L_outer is the validation cross-entropy or, as the authors' training script has it, 0.75 of it and 0.25 of the training one.
With several teachers each has its own share of a_i, equal at first (our interpretation; the paper has one teacher).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.weighting.meta_batches import TrainBatch, ValidationBatch
from workbench.weighting.meta_gradients import LookAheadSettings, MetaLearnedWeighting, normalized, outer_gradients
from workbench.weighting.protocol import TeacherStatistics

LOOKS_AHEAD = True  # learns its weights on the meta or the validation split


class Settings(LookAheadSettings):
    """Options of ALM-KD. The defaults are our interpretation; docs/weightings.md has all of the authors' values."""

    EARLIER: ClassVar = {
        **LookAheadSettings.EARLIER,
        "initial": "initial_alpha",
        "step_per_learning_rate": "weight_learning_rate_factor",
        "train_share": "train_loss_weight",
        "at_rate_change": "update_on_learning_rate_change",
        "smallest": "min_alpha",
    }  # names of earlier versions

    start_epoch: int = Field(
        1, ge=0, description="epoch (from 0) before which weights are learnt for the first time; the authors: 0"
    )
    steps_per_update: int = Field(10, ge=1, description="steps of the weights in one update, 10 as published")
    initial_alpha: float | None = Field(
        None, ge=0, le=1, description="initial a_i; drawn from U(0, 1) by default, as published"
    )
    weight_learning_rate_factor: float | None = Field(
        None,
        gt=0,
        description="step of the weights as a multiple of the optimizer's learning rate, in place of `weight_learning_rate`; the authors: 2000",
    )
    train_loss_weight: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="weight of the training micro-batch's cross-entropy in the outer loss; the authors: 0.25",
    )
    validation: Literal["batch", "whole"] = Field(
        "batch",
        description="validation utterances in the look-ahead of a micro-batch: one batch in turn, or all; the authors: whole",
    )
    update_on_learning_rate_change: bool = Field(
        False,
        description="also learn where the learning rate has changed since weights were last learnt; the authors: true",
    )
    min_alpha: float = Field(
        0.0, ge=0, lt=0.5, description="a_i is kept within [min_alpha, 1 - min_alpha]; the authors: 1e-7"
    )


class ALMKD(MetaLearnedWeighting):
    """One convex weight per utterance."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.start_epoch, settings.update_every)
        self.settings = settings
        self.whole_validation = settings.validation == "whole"
        self.update_on_learning_rate_change = settings.update_on_learning_rate_change

    def initial(self, name: str, losses: int) -> list[float]:
        """Drawn from the run's seed and the utterance's id, whatever the order of the utterances."""
        alpha = self.settings.initial_alpha
        if alpha is None:
            digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
            alpha = int.from_bytes(digest[:8], "big") / 2**64
        return [1 - alpha, *[alpha / (losses - 1)] * (losses - 1)]

    def updated_weights(
        self, batch: TrainBatch, outer: Sequence[ValidationBatch], weights: Tensor, learning_rate: float
    ) -> Tensor:
        """Descend along a_i; with a = 1 - w_task, da acts on the task's weight with the opposite sign."""
        settings, teachers = self.settings, len(weights) - 1
        rate, step = settings.look_ahead_rate(learning_rate), settings.weight_learning_rate
        if settings.weight_learning_rate_factor is not None:
            step = settings.weight_learning_rate_factor * learning_rate
        largest = 1 - settings.min_alpha
        alpha = weights[1:]  # [teachers, utterances]
        for _ in range(settings.steps_per_update):
            slopes = outer_gradients(batch, outer, _convex(alpha), rate, settings.train_loss_weight)
            alpha = alpha - step / teachers * normalized(slopes[1:] - slopes[0], settings.gradient_scale)
            alpha = alpha.clamp(settings.min_alpha, largest)
            alpha = alpha / (alpha.sum(0) / largest).clamp(min=1)  # with several teachers, their sum is at most that
        return _convex(alpha)


def _convex(alpha: Tensor) -> Tensor:
    """[teachers, utterances] -> [1 + teachers, utterances]"""
    return torch.cat([1 - alpha.sum(0, keepdim=True), alpha])


def build(settings: Settings, statistics: TeacherStatistics) -> ALMKD:
    """Build from a recipe's options."""
    return ALMKD(settings)
