"""What the parts of a run share while its stages train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.config.recipe import Recipe
from workbench.core.distributed import Processes
from workbench.distill.teaching.on_policy import OnPolicy
from workbench.models import Family
from workbench.run.log import RunLog


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Fixed from the first stage's begin to the run's end; what changes is in `run.checkpoints.TrainingState`."""

    recipe: Recipe
    accelerator: Any  # Accelerate's
    processes: Processes
    family: Family  # of the student, narrowed if it knows only some tokens
    model: Any  # the student, as it is before Accelerate wraps it
    log: RunLog
    teacher_shares: tuple[float, ...] = (1.0,)  # of each teacher in the distillation loss
    uncertainty: Mapping[str, float] | None = None  # the teacher's, by utterance id, where a weighting asks for it
    on_policy: OnPolicy | None = None  # where a stage samples from the student

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.recipe.output

    @property
    def streaming(self) -> bool:
        """Whether the corpus is streamed, a window of it at a time."""
        return self.recipe.stream is not None

    def encoder_untrained(self, stage: str) -> bool:
        """Whether the student's encoder is as it was at the run's begin, all through a stage."""
        until = list(self.recipe.stages).index(stage) + 1
        return all(s.trainable == "decoder" for s in list(self.recipe.stages.values())[:until])
