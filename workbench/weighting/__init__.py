"""Instance-level weighting: how much each utterance's losses count. The systems are in `systems`; a recipe picks one by its file's name."""

from workbench.config.weightings import (
    StageSchedule,
    WeightingSettings,
    inactive_reason,
    known_weightings,
    needs_uncertainty,
    parse_settings,
)
from workbench.weighting.protocol import SelfTeacherSettings, TeacherStatistics, Weighting, WeightingInput, Weights
from workbench.weighting.registry import build_weighting

__all__ = [
    "SelfTeacherSettings",
    "StageSchedule",
    "TeacherStatistics",
    "Weighting",
    "WeightingInput",
    "WeightingSettings",
    "Weights",
    "build_weighting",
    "inactive_reason",
    "known_weightings",
    "needs_uncertainty",
    "parse_settings",
]  # fmt: skip
