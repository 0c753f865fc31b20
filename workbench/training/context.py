"""What the parts of a run share while its stages train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from workbench.config.recipe import Recipe
from workbench.core.machine.distributed import Processes, is_sharded
from workbench.models import Family
from workbench.run import checkpoints
from workbench.run.log import RunLog
from workbench.training.teaching.stage_teachers import StageTeachers


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What all stages share. Only `model` may be another object in a later stage; state that changes is in `run.checkpoints.TrainingState`."""

    recipe: Recipe
    accelerator: Accelerator
    processes: Processes
    family: Family  # of the student, narrowed if it knows only some tokens
    model: nn.Module  # the student, as it is before Accelerate wraps it
    log: RunLog
    teachers: Mapping[str, StageTeachers]  # by the stage's name

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.recipe.output

    @property
    def streaming(self) -> bool:
        """Whether the corpus is streamed, a window of it at a time."""
        return self.recipe.stream is not None

    @property
    def sharded(self) -> bool:
        """Whether FSDP has replaced the student's parameters with shards."""
        return is_sharded(self.model)

    def whole_model(self, main_alone: bool = False) -> Any:
        """The student, or a whole copy if it is sharded; with `main_alone` None on other processes. All processes must call it."""
        if not self.sharded:
            return self.model
        state = checkpoints.model_tensors(self.model)
        if main_alone and not self.processes.is_main:
            return None
        whole = self.family.empty_copy(self.model)
        whole.load_state_dict(state, strict=False)
        return whole.to(self.accelerator.device).eval()

    def encoder_untrained(self, stage: str) -> bool:
        """Whether the student's encoder stays as it was at the start of the run, throughout a stage."""
        until = list(self.recipe.stages).index(stage) + 1
        return all(s.trainable == "decoder" for s in list(self.recipe.stages.values())[:until])
