"""ASKD, adaptive self-knowledge distillation (ASKD-Whisper, arXiv 2601.19919).

Only the idea was found published: the dependence on the teacher falls during training, then the student teaches itself, which acts as a
regulariser. Schedule, self-teacher and losses are our interpretation here, and options.

Phase 1, a share of the stage: (1 - a) * task + a * distillation with a falling from w0 to w1. Phase 2: the teacher is dropped, and the
student distils from itself with the weight `self_weight`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from workbench.config.weightings import StageSchedule, WeightingSettings
from workbench.weighting.protocol import (
    SelfTeacherSettings,
    TeacherStatistics,
    Weighting,
    WeightingInput,
    Weights,
    convex,
    full_like,
)

WEIGHTS_ALIKE = True  # all utterances of a step


class Settings(WeightingSettings):
    """Options of ASKD, all our interpretation."""

    EARLIER: ClassVar = {"layer": "student_layer"}  # names of earlier versions

    phase1: float = Field(0.7, ge=0, le=1, description="share of the stage with the teacher")
    w0: float = Field(0.9, ge=0, le=1, description="weight of the teacher at the start")
    w1: float = Field(0.1, ge=0, le=1, description="weight of the teacher at the end of phase 1")
    decay: Literal["linear", "cosine", "exponential"] = "cosine"
    self_teacher: Literal["ema", "snapshot", "previous_epoch", "intermediate"] = "ema"
    self_weight: float | None = Field(
        None,
        ge=0,
        le=1,
        description="weight of the self-teacher in phase 2; 0.3 by default, and for `intermediate` a ramp from 0.3 to 0.7",
    )
    ema_decay: float = Field(0.99, gt=0, lt=1)
    student_layer: int = Field(
        0, ge=0, description="for `intermediate`: number of the decoder layer that the last one teaches"
    )
    temperature: float = Field(1.0, gt=0, description="temperature of the self-teacher's distribution")

    def inactive_reason(self, stage: StageSchedule) -> str | None:
        """As for every weighting, or because phase 2 has no step, or its self-teacher would be the untrained student throughout."""
        if self.phase1 >= 1:
            return super().inactive_reason(stage)
        if stage.steps == 1:
            return "the stage has one step, so phase 2 never begins; train for longer, or set phase1: 1"
        if self.self_teacher == "previous_epoch" and stage.epochs == 1 and not stage.stream:
            return (
                "self_teacher is previous_epoch and the stage reaches one epoch only, so the self-teacher would be the "
                "student before training; train for more epochs, or set self_teacher: ema"
            )
        # phase 2 has no on-policy micro-batches, so it acts whatever their share is
        return super().inactive_reason(replace(stage, on_policy_fraction=0.0))


class ASKD(Weighting):
    """A teacher weight that falls with time, then self-distillation."""

    log_names = ("self_teaching",)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def self_teacher(self) -> SelfTeacherSettings | None:
        """The self-teacher of phase 2, if there is a phase 2."""
        chosen = self.settings
        if chosen.phase1 >= 1:
            return None
        return SelfTeacherSettings(chosen.self_teacher, chosen.ema_decay, chosen.student_layer, chosen.temperature)

    def is_self_distilling(self, progress: float) -> bool:
        """Whether phase 2 has begun."""
        return progress >= self.settings.phase1 and self.settings.phase1 < 1

    def teacher_weight(self, progress: float) -> float:
        """Weight a in phase 1: w0 at its start, w1 at its end."""
        w0, w1 = self.settings.w0, self.settings.w1
        share = min(progress / self.settings.phase1, 1.0) if self.settings.phase1 else 1.0
        if self.settings.decay == "linear":
            return w0 + (w1 - w0) * share
        if self.settings.decay == "cosine":
            return w1 + (w0 - w1) * (1 + math.cos(math.pi * share)) / 2
        # an exponential decay cannot end at zero
        floor = 1e-3
        return float(max(w0, floor) * (max(w1, floor) / max(w0, floor)) ** share)

    def self_weight(self, progress: float) -> float:
        """Weight of the self-teacher in phase 2.

        For `intermediate` it rises with phase 2 as min(max((e - 1) / (E - 1), 0.3), 0.7), the schedule of a third party's
        CTC self-distillation.
        """
        if self.settings.self_weight is not None:
            return self.settings.self_weight
        if self.settings.self_teacher != "intermediate":
            return 0.3
        share = (progress - self.settings.phase1) / max(1 - self.settings.phase1, 1e-9)
        return min(max(share, 0.3), 0.7)

    def __call__(self, inputs: WeightingInput) -> Weights:
        """Weight every utterance alike, by progress."""
        itself = self.is_self_distilling(inputs.progress)
        alpha = self.self_weight(inputs.progress) if itself else self.teacher_weight(inputs.progress)
        return convex(full_like(inputs.task, alpha), self_teaching=float(itself))


def build(settings: Settings, statistics: TeacherStatistics) -> ASKD:
    """Build from a recipe's options."""
    return ASKD(settings)
