"""Conditional teacher-student learning (Meng et al., ICASSP 2019, arXiv 1904.12399): the teacher only where it is right.

At each label the student learns from the teacher if the teacher's likeliest token is the label, from the label otherwise.
"""

from __future__ import annotations

from workbench.config.weightings import WeightingSettings
from workbench.weighting.protocol import TeacherStatistics, Weighting, WeightingInput, Weights

WEIGHTS_TOKENS = True  # not whole utterances


class Settings(WeightingSettings):
    """Conditional teacher-student learning has no options."""


class Conditional(Weighting):
    """Token by token, one of the two losses."""

    def __call__(self, inputs: WeightingInput) -> Weights:
        """Choose a loss for each label."""
        right = inputs.teacher_right.float()  # [labels]
        return Weights(1 - right, right, by_token=True)


def build(settings: Settings, statistics: TeacherStatistics) -> Conditional:
    """Build from a recipe's options."""
    return Conditional()
