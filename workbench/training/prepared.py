"""A stage's student and optimizer, wrapped by Accelerate, and everything that refers to the wrapped parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workbench.config.sections import Stage
from workbench.core.machine.kernels import compiled
from workbench.run import checkpoints
from workbench.training.context import RunContext
from workbench.training.ema import MovingAverage
from workbench.training.step.student_module import StudentModule

AVERAGE = "average"  # its file in a checkpoint


@dataclass(frozen=True)
class PreparedStage:
    """What a stage's training steps use."""

    student: torch.nn.Module  # as it is called: compiled and distributed as the run requires
    optimizer: torch.optim.Optimizer
    torch_optimizer: torch.optim.Optimizer  # the optimizer that Accelerate's wraps
    names: Mapping[Tensor, str]  # of the trained parameters
    average: MovingAverage | None


def prepare_stage(context: RunContext, stage: Stage, module: StudentModule, checkpoint: Path | None) -> PreparedStage:
    """Wrap the student and build what refers to its parameters, in the only order that works.

    1. What is trained is marked before (`StudentModule` does), so that the optimizer and DDP see it.
    2. The student is compiled before it is distributed: DDP reduces gradients of the compiled graph.
    3. FSDP replaces the model's parameters with sharded ones in `prepare_stage`, so whatever keeps references to parameters (names
       of the optimizer's moments, moving average, self-teacher) comes after it.
    4. A checkpoint's moments come last, since they are sharded as the parameters are.

    Args:
        context: the run's context.
        stage: its settings.
        module: the student, its trained parameters marked.
        checkpoint: the one that the stage resumes from, if it does.
    """
    wrapped = compiled(module) if context.recipe.compile else module
    adamw = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=stage.learning_rate,
        weight_decay=stage.weight_decay,
        fused=True,
    )
    student, optimizer = context.accelerator.prepare(wrapped, adamw)
    torch_optimizer = getattr(optimizer, "optimizer", optimizer)
    names: dict[Tensor, str] = {p: n for n, p in context.model.named_parameters() if p.requires_grad}
    average = MovingAverage(context.model, context.recipe.ema_decay) if context.recipe.ema_decay else None
    if checkpoint is not None:
        checkpoints.load_optimizer(checkpoint, torch_optimizer, names)
        if average:
            average.load_state_dict(checkpoints.load_tensors(checkpoint, AVERAGE))
    return PreparedStage(student, optimizer, torch_optimizer, names, average)
