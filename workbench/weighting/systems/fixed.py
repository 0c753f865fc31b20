"""The same weights for every utterance, throughout: the baseline that adaptive systems are compared with."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from workbench.weighting.protocol import TeacherStatistics, Weighting, WeightingInput, Weights, convex, full_like

WEIGHTS_ALIKE = True  # all utterances of a step


class Settings(BaseModel):
    """Either `alpha`, for (1 - alpha) * task + alpha * distillation, or both factors by name.

    alpha 0 is plain fine-tuning, 1 is distillation alone. Distil-Whisper's training code has `task: 0.8, distillation: 1.0` with tau = 2
    (arXiv 2311.00430).
    """

    model_config = ConfigDict(extra="forbid")
    alpha: float = Field(0.5, ge=0, le=1)
    task: float | None = Field(None, ge=0)
    distillation: float | None = Field(None, ge=0)


class Fixed(Weighting):
    """Constant weights."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, inputs: WeightingInput) -> Weights:
        """Weight every utterance alike."""
        chosen, task = self.settings, inputs.task
        if chosen.task is None and chosen.distillation is None:
            return convex(full_like(task, chosen.alpha))
        return Weights(full_like(task, chosen.task or 0.0), full_like(task, chosen.distillation or 0.0))


def build(settings: Settings, statistics: TeacherStatistics) -> Fixed:
    """Build from a recipe's options."""
    return Fixed(settings)
