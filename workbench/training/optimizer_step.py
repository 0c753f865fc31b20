"""One optimizer step of a stage: its micro-batches, the gradient's norm, the update, and what is logged of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from workbench.config.sections import Stage
from workbench.core.machine.allocator import release_freed_memory
from workbench.run import checkpoints
from workbench.run.checkpoints import TrainingProgress
from workbench.training.context import RunContext
from workbench.training.epochs import EpochPlan
from workbench.training.forward_backward import ForwardBackward
from workbench.training.prepared import PreparedStage
from workbench.training.quantization import Quantization
from workbench.training.step.batches import Batch
from workbench.training.step.consistency import CONSISTENCY
from workbench.training.step.intermediate_ctc import INTERMEDIATE
from workbench.training.step.losses import Objective, StageProgress, StepSize, weight_columns
from workbench.training.step.metrics import StepMetrics
from workbench.training.step.mixup import MIXED

STEPS_BETWEEN_RELEASES = 100  # of freed memory to the system, on a CPU


class OptimizerStep:
    """A stage's step.

    Args:
        context: what the parts of the run share.
        stage: the stage's settings.
        name: the stage's name in the recipe.
        epochs: gives the learning rate and how far the stage is.
        prepared: the wrapped student and its optimizer.
        forward_backward: runs micro-batches; its self-teacher, if it has one, is updated after each step.
        progress: the run's counters, which are advanced here.
        quantization: what is rounded while micro-batches run.
    """

    def __init__(
        self,
        context: RunContext,
        stage: Stage,
        name: str,
        epochs: EpochPlan,
        prepared: PreparedStage,
        forward_backward: ForwardBackward,
        progress: TrainingProgress,
        quantization: Quantization,
    ) -> None:
        self.quantization = quantization
        self.context, self.stage, self.name, self.epochs = context, stage, name, epochs
        self.prepared, self.forward_backward, self.progress = prepared, forward_backward, progress

    def __call__(self, micro_batches: Sequence[Batch], objective: Objective, total: int) -> None:
        """Take one step of the `total` that the stage has."""
        context, prepared, progress = self.context, self.prepared, self.progress
        for group in prepared.torch_optimizer.param_groups:
            group["lr"] = self.epochs.learning_rate(total)
        stage_progress = self.epochs.stage_progress(total)
        self_teaching = self._starts_self_teaching(objective, stage_progress)
        names = (
            *objective.weighting.log_names,
            *self.forward_backward.log_names,
            *([CONSISTENCY] if self.stage.consistency else []),
            *([INTERMEDIATE] if self.stage.intermediate_ctc is not None else []),
            *([MIXED] if self.stage.mixup is not None else []),
        )
        metrics = StepMetrics(names, context.accelerator.device)
        with self.quantization.applied():
            rows = self._run(micro_batches, objective, stage_progress, self_teaching, metrics)
        parameters = [p for group in prepared.torch_optimizer.param_groups for p in group["params"]]
        norm = context.accelerator.clip_grad_norm_(parameters, self.stage.max_grad_norm)
        prepared.optimizer.step()
        prepared.optimizer.zero_grad(set_to_none=True)
        if prepared.average:
            prepared.average.update(progress.stage_step)
        if self.forward_backward.self_teacher:
            self.forward_backward.self_teacher.on_optimizer_step(progress.stage_step)
        if self.forward_backward.adapter:
            schedule = self.epochs.learning_rate(total) / self.stage.learning_rate
            self.forward_backward.adapter.on_optimizer_step(schedule, context.processes.all_reduce_sum)
        objective.weighting.on_optimizer_step(context.processes.all_reduce_sum)
        progress.stage_step += 1
        progress.step += 1
        if progress.stage_step % STEPS_BETWEEN_RELEASES == 0:
            release_memory(context.accelerator.device)
        means = metrics.means(context.processes.all_reduce_sum)
        if self.stage.on_policy is None:
            means.pop("on_policy")
        scalars = {"gradient_norm": checkpoints.whole(norm) if hasattr(norm, "full_tensor") else norm,
                   "learning_rate": prepared.torch_optimizer.param_groups[0]["lr"], **means}  # fmt: skip
        context.log.step(progress.step, self.name, scalars, rows)

    def _starts_self_teaching(self, objective: Objective, progress: StageProgress) -> bool:
        """Whether the student is its own teacher by now; at the first such step, a snapshot of it is taken."""
        self_teacher = self.forward_backward.self_teacher
        if self_teacher is None or not objective.weighting.is_self_distilling(progress.fraction):
            return False
        if not self.progress.self_teaching:
            self.progress.self_teaching = True
            if self_teacher.plan.kind == "snapshot":
                self_teacher.copy_from_student()
        return True

    def _run(
        self,
        micro_batches: Sequence[Batch],
        objective: Objective,
        progress: StageProgress,
        self_teaching: bool,
        metrics: StepMetrics,
    ) -> list[tuple[list[str], Tensor]]:
        """Forward and backward of a step's micro-batches; returns ids and `weight_columns` of those that were weighted."""
        accelerator, size = self.context.accelerator, self._size(micro_batches)
        rows: list[tuple[list[str], Tensor]] = []
        for i, cpu_batch in enumerate(micro_batches):
            batch = cpu_batch.to(accelerator.device)
            last = i == len(micro_batches) - 1
            with ExitStack() as unsynchronized:
                if not last:
                    unsynchronized.enter_context(accelerator.no_sync(self.prepared.student))
                losses = self.forward_backward(batch, objective, progress, size, self_teaching)
            if batch.is_real:
                metrics.add(losses)
                if not losses.on_policy:
                    rows.append((batch.ids, weight_columns(losses, batch)))
        return rows

    def _size(self, micro_batches: Sequence[Batch]) -> StepSize:
        """Utterances and tokens of the whole step, over all processes."""
        real = [batch for batch in micro_batches if batch.is_real]
        counts = [sum(len(b.ids) for b in real), sum(int(b.label_counts.sum()) for b in real)]
        sums = self.context.processes.all_reduce_sum(torch.tensor(counts, dtype=torch.float32))
        utterances, tokens = sums.tolist()
        return StepSize(utterances, tokens)


def release_memory(device: torch.device) -> None:
    """On a CPU, give memory that was freed back to the system."""
    if device.type == "cpu":
        release_freed_memory()
