"""Build the weighting system that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping

from workbench.config.weightings import parse_controls, parse_settings, weighting_module
from workbench.weighting.controls import Controlled
from workbench.weighting.protocol import TeacherStatistics, Weighting


def build_weighting(options: Mapping[str, object], statistics: TeacherStatistics, seed: int = 0) -> Weighting:
    """Build the system that a recipe names, and the control on it if there is one, for a run with this seed."""
    weighting: Weighting = weighting_module(str(options.get("name", "fixed"))).build(
        parse_settings(options), statistics
    )
    weighting.seed = seed
    for control in parse_controls(options):
        weighting = Controlled(weighting, control)
        weighting.seed = seed
    return weighting
