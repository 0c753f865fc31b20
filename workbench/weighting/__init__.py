"""Instance-level weighting systems: one file each, picked in a recipe by the file's name.

A file defines `Settings`, a pydantic model of the options a recipe may set, and `build(settings, statistics)`, which
returns a `Weighting`. Adding a system is adding a file; nothing else names it.
"""

from workbench.weighting.protocol import Evidence, SelfTeacherPlan, StageFacts, TeacherStatistics, Weighting, Weights
from workbench.weighting.registry import (
    build_weighting,
    known_weightings,
    needs_uncertainty,
    parse_settings,
    without_effect,
)

__all__ = ["Evidence", "SelfTeacherPlan", "StageFacts", "TeacherStatistics", "Weighting", "Weights", "build_weighting",
           "known_weightings", "needs_uncertainty", "parse_settings", "without_effect"]  # fmt: skip
