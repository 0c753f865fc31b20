"""What a stage does with a teacher whose decoder runs in the steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.config.sections import Stage
from workbench.run import checkpoints
from workbench.training.context import RunContext
from workbench.training.teaching.decoder_matching import DecoderMatching, stage_layers
from workbench.training.teaching.on_policy import OnPolicy
from workbench.training.teaching.teacher_adapter import ADAPTER, TeacherAdapter


@dataclass(frozen=True)
class TeacherInSteps:
    """Each of these is None unless the stage asks for it."""

    on_policy: OnPolicy | None = None  # samples from the student
    matching: DecoderMatching | None = None  # compares decoder layers with the teacher's
    adapter: TeacherAdapter | None = None  # adapts the teacher's targets


def teacher_in_steps(context: RunContext, name: str, stage: Stage, checkpoint: Path | None) -> TeacherInSteps:
    """Build what a stage needs of its teacher in the steps.

    Args:
        context: the run's context.
        name: the stage's name.
        stage: its settings.
        checkpoint: the one that the stage resumes from, if it does.
    """
    teacher, family = context.teachers[name].resident, context.family
    if teacher is None:
        return TeacherInSteps()
    on_policy = OnPolicy(stage.on_policy, family, teacher) if stage.on_policy is not None else None
    matching = adapter = None
    if stage.decoder_matching is not None:
        layers = stage_layers(context.recipe, name, family, context.model, teacher.family, teacher.model)
        matching = DecoderMatching(stage.decoder_matching, teacher, family, layers, family.pooling(context.model))
    if stage.teacher_adapter is not None:
        adapter = TeacherAdapter(stage.teacher_adapter, teacher, family, context.recipe.seed)
        if checkpoint is not None:
            adapter.load_state_dict(checkpoints.load_tensors(checkpoint, ADAPTER))
    return TeacherInSteps(on_policy, matching, adapter)
