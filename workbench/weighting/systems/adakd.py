"""AdaKD: adaptive knowledge distillation by the teacher's difficulty (arXiv 2405.08019).

    a_i = exp(-1 / sqrt(exp(-k * (x_i - t)))) = exp(-exp(k * (x_i - t) / 2))

x_i is the teacher's own task loss on utterance i, t a threshold over the training set, and k falls linearly over
training. At the start (k large) easy utterances lean on the teacher; once k is below zero, hard ones do.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from workbench.config.weightings import StageSchedule, WeightingSettings
from workbench.weighting.protocol import TeacherStatistics, Weighting, WeightingInput, Weights, convex

LARGEST_EXPONENT = 10.0  # exp(-exp(10)) is already 0 in fp32; beyond it exp would only overflow


class Settings(WeightingSettings):
    """Options of AdaKD. The published range of k was not found: k0, k1 and the scale are our interpretation."""

    EARLIER: ClassVar = {"k_by": "k_schedule"}  # names of earlier versions

    k0: float = Field(2.0, description="k at the first step")
    k1: float = Field(-1.0, description="k at the last step")
    threshold: Literal["mean", "median", "p25", "p75"] = "mean"
    difficulty_scale: Literal["raw", "std"] = Field(
        "std",
        description="[our interpretation] std divides x - t by the losses' deviation, so one k fits every model family",
    )
    k_schedule: Literal["step", "epoch"] = Field(
        "step", description="whether k falls with every step or with every epoch"
    )

    def inactive_reason(self, stage: StageSchedule) -> str | None:
        """As for every weighting, or because a k that falls per epoch never falls in a single epoch."""
        if self.k_schedule == "epoch" and self.k0 != self.k1 and stage.epochs == 1:
            return "k_schedule is epoch and the stage reaches one epoch only, so k stays k0; set k_schedule: step"
        return super().inactive_reason(stage)


class AdaKD(Weighting):
    """Weights from the teacher's difficulty and the training progress."""

    log_names = ("k",)

    def __init__(self, settings: Settings, statistics: TeacherStatistics) -> None:
        self.settings = settings
        percentiles = {"median": 50.0, "p25": 25.0, "p75": 75.0}
        self.threshold = (
            statistics.mean if settings.threshold == "mean" else statistics.percentile(percentiles[settings.threshold])
        )
        # a corpus whose losses are all equal has no difficulty to scale: every x - t is 0 then
        self.scale = (statistics.std or 1.0) if settings.difficulty_scale == "std" else 1.0

    def k(self, progress: float) -> float:
        """Slope at a progress in [0, 1]: linear from k0 to k1."""
        return self.settings.k0 + (self.settings.k1 - self.settings.k0) * progress

    def __call__(self, inputs: WeightingInput) -> Weights:
        """Weight each utterance by its own difficulty (eq. for alpha in the paper; not a batch mean)."""
        k = self.k(inputs.progress if self.settings.k_schedule == "step" else inputs.epoch_progress)
        exponent = k * (inputs.teacher_loss.float() - self.threshold) / self.scale / 2
        alpha = torch.exp(-torch.exp(exponent.clamp(max=LARGEST_EXPONENT)))  # [utterances]
        return convex(alpha, k=k)


def build(settings: Settings, statistics: TeacherStatistics) -> AdaKD:
    """Build from a recipe's options."""
    return AdaKD(settings, statistics)
