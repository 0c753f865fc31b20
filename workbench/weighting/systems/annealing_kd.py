"""Annealing-KD (Jafari et al., EACL 2021, arXiv 2104.07163): first the teacher's logits, scaled up step by step; then the labels.

Phase 1 is MSE(z_s, z_t * T / T_max) with T rising from 1 to T_max in equal parts of the phase, phase 2 cross-entropy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from workbench.config.sections import DivergenceRecipe
from workbench.config.weightings import StageSchedule, WeightingSettings
from workbench.weighting.protocol import TeacherStatistics, Weighting, WeightingInput, Weights, convex, full_like

WEIGHTS_ALIKE = True  # all utterances of a step


class Settings(WeightingSettings):
    """Options of Annealing-KD."""

    EARLIER: ClassVar = {"levels": "max_temperature"}  # names of earlier versions

    phase1: float = Field(0.7, ge=0, le=1, description="[our interpretation] share of the stage spent in phase 1")
    max_temperature: int = Field(
        7, ge=1, description="T_max: steps in which the teacher's logits rise to their full size"
    )

    def inactive_reason(self, stage: StageSchedule) -> str | None:
        """As for every weighting, or because one of the phases has no step."""
        if self.phase1 == 0:
            return "phase1 is 0, so the teacher is never used; set phase1 above 0, or use {name: fixed, alpha: 0}"
        if self.phase1 < 1 and stage.steps == 1:
            return "the stage has one step, so phase 2 never begins; train for longer, or set phase1: 1"
        # its distillation loss is its own, so it acts on on-policy micro-batches, too
        return super().inactive_reason(replace(stage, on_policy_fraction=0.0))


class AnnealingKD(Weighting):
    """Distillation alone, then the labels alone."""

    log_names = ("teacher_scale",)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def scale(self, progress: float) -> float:
        """Factor of the teacher's logits, T / T_max."""
        share = progress / self.settings.phase1 if self.settings.phase1 else 1.0
        return (
            min(int(share * self.settings.max_temperature) + 1, self.settings.max_temperature)
            / self.settings.max_temperature
        )

    def divergence(self, chosen: DivergenceRecipe, progress: float) -> DivergenceRecipe:
        """Mean squared error of the logits, which is part of the method."""
        return DivergenceRecipe(name="logit_mse", teacher_scale=self.scale(progress), blank_weight=chosen.blank_weight)

    def __call__(self, inputs: WeightingInput) -> Weights:
        """Weight by phase alone."""
        alpha = float(inputs.progress < self.settings.phase1)
        return convex(full_like(inputs.task, alpha), teacher_scale=self.scale(inputs.progress))


def build(settings: Settings, statistics: TeacherStatistics) -> AnnealingKD:
    """Build from a recipe's options."""
    return AnnealingKD(settings)
