"""Instance-level weighting: what each utterance's losses count for. The systems are in `systems`, picked in a recipe by the file's name."""

from workbench.config.weightings import (
    StageFacts,
    WeightingSettings,
    known_weightings,
    needs_uncertainty,
    parse_settings,
    without_effect,
)
from workbench.weighting.protocol import SelfTeacherPlan, TeacherStatistics, Weighting, WeightingInput, Weights
from workbench.weighting.registry import build_weighting

__all__ = [
    "SelfTeacherPlan",
    "StageFacts",
    "TeacherStatistics",
    "Weighting",
    "WeightingInput",
    "WeightingSettings",
    "Weights",
    "build_weighting",
    "known_weightings",
    "needs_uncertainty",
    "parse_settings",
    "without_effect",
]  # fmt: skip
