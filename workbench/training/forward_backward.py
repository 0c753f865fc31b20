"""Forward and backward pass of a micro-batch: the student's input, the targets it learns from, the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from workbench.audio.augment import spec_augment
from workbench.config.sections import AugmentRecipe
from workbench.losses.divergences import SoftTargets
from workbench.models import Family
from workbench.models.protocol import LayerOutputs
from workbench.run.checkpoints import Timers
from workbench.training.in_step import TeacherInSteps
from workbench.training.step.batches import Batch
from workbench.training.step.consistency import CONSISTENCY, consistency_losses
from workbench.training.step.intermediate_ctc import with_intermediate
from workbench.training.step.losses import Objective, StageProgress, StepLosses, StepSize, step_losses
from workbench.training.step.mixup import MIXED, draw_mix
from workbench.training.step.student_module import StudentModule
from workbench.training.teaching.on_policy import OnPolicy, on_policy_losses
from workbench.training.teaching.self_teacher import SelfTeacher
from workbench.training.teaching.teacher_adapter import ADAPTED, TeacherAdapter


class ForwardBackward:
    """Runs micro-batches through a stage's student."""

    def __init__(
        self,
        accelerator: Accelerator,
        family: Family,
        module: StudentModule,
        wrapped: Callable[..., tuple[Tensor, Tensor | None, LayerOutputs | None]],
        augment: AugmentRecipe,
        timers: Timers,
        in_steps: TeacherInSteps,
    ) -> None:
        """Bind a student.

        Args:
            accelerator: Accelerate's object for the run.
            family: runs the student.
            module: the student as a module, whose forward pass is a step's.
            wrapped: the same, compiled and distributed as the run requires.
            augment: masks on the features.
            timers: timers for the sampling.
            in_steps: what the stage does with a teacher whose decoder runs in the steps.
        """
        self.accelerator, self.family, self.module, self.wrapped = accelerator, family, module, wrapped
        self.augment, self.timers = augment, timers
        self.on_policy, self.matching, self.adapter = in_steps.on_policy, in_steps.matching, in_steps.adapter
        self.self_teacher: SelfTeacher | None = None

    @property
    def log_names(self) -> tuple[str, ...]:
        """Names of the further losses in `StepLosses.terms`."""
        return (*(self.matching.names if self.matching else ()), *([ADAPTED] if self.adapter else []))

    def audio(self, batch: Batch) -> tuple[Tensor, bool]:
        """The student's input for a batch, and whether it is states of a frozen encoder."""
        if batch.student_states.numel():
            return batch.student_states.float(), True
        features = self.family.spectrum(batch.waves, batch.samples, batch.heard)
        draw = np.random.default_rng([*batch.seed, 2])
        return spec_augment(features, self.augment, draw, self.family.mels), False

    def __call__(
        self, batch: Batch, objective: Objective, progress: StageProgress, size: StepSize, self_teaching: bool = False
    ) -> StepLosses:
        """Forward the student, compare with the targets of the teachers or of itself, weight the losses, backward.

        Args:
            batch: the micro-batch, on the device.
            objective: the stage's losses.
            progress: position in the stage.
            size: utterances and tokens of the whole step.
            self_teaching: whether the student is its own teacher by now.
        """
        audio, encoded = self.audio(batch)
        plan = self.self_teacher.plan if self.self_teacher and self_teaching else None
        on_policy = self.on_policy
        if self_teaching or not batch.is_real or (on_policy is not None and not on_policy.is_on_policy(batch)):
            on_policy = None
        stage, mix, clean = objective.stage, None, None
        if stage.mixup is not None and on_policy is None and not self_teaching and batch.is_real:
            mix = draw_mix(stage.mixup, batch)
        if mix is not None:
            audio, attention_mask = mix.audio(audio, batch.attention_mask, encoded)
            batch = replace(batch, attention_mask=attention_mask)
        intermediate = stage.intermediate_ctc
        self.module.early_layer = plan.layer if plan is not None and plan.kind == "intermediate" else None
        said = own = None
        with self.accelerator.autocast():
            if on_policy is not None:
                batch, own = self._proposed(on_policy, batch, audio, encoded)
            if batch.clean_waves.numel() and mix is None and batch.is_real:
                clean = self._clean_logits(batch)
            states, logits, layers = self.wrapped(
                audio,
                batch.attention_mask,
                batch.inputs,
                batch.labels,
                batch.labelled,
                encoded,
                *([] if mix is None else [mix.host]),
            )
            early = None
            if intermediate is not None and logits is not None:
                logits, early = logits.chunk(2)
            if self_teaching and self.self_teacher is not None and logits is not None:
                said = self.self_teacher.targets(batch, audio, states, logits, encoded)
        if own is not None and logits is not None:
            losses = on_policy_losses(states, logits, batch, own, objective, progress, size)
        else:
            share = None if mix is None else mix.share
            adapter = self.adapter if batch.is_real and not self_teaching else None
            if adapter is not None and logits is not None:
                losses = self._adapted(adapter, states, logits, batch, objective, progress, size, share)
            else:
                losses = step_losses(states, logits, batch, objective, progress, size, said, share)
        if stage.mixup is not None:
            mixed = losses.task.new_full((len(batch.ids),), float(mix is not None))
            losses = replace(losses, terms={**losses.terms, MIXED: mixed})
        if clean is not None and logits is not None:
            each = consistency_losses(logits[: len(batch.labelled)], clean, batch)
            losses = losses.plus(CONSISTENCY, stage.consistency, each, size)
        if early is not None and logits is not None and batch.is_real:
            losses = with_intermediate(losses, early, logits, batch, objective, size)
        if layers is not None and batch.is_real and not self_teaching:
            losses = self._matched(losses, batch, layers, size)
        # DistributedDataParallel averages over the processes what should be summed
        self.accelerator.backward(losses.loss * self.accelerator.num_processes)
        return losses

    def _matched(self, losses: StepLosses, batch: Batch, layers: LayerOutputs, size: StepSize) -> StepLosses:
        """The losses with those of the decoder layers."""
        if self.matching is None:
            return losses
        with self.accelerator.autocast():
            terms = self.matching(batch, layers)
        for name, factor, each in terms:
            losses = losses.plus(name, factor, each, size)
        return losses

    def _adapted(
        self,
        adapter: TeacherAdapter,
        states: Tensor,
        logits: Tensor,
        batch: Batch,
        objective: Objective,
        progress: StageProgress,
        size: StepSize,
        share: float | None,
    ) -> StepLosses:
        """The losses from the adapted teacher's targets; the adapter gets its gradient too, unless clips are mixed."""
        with self.accelerator.autocast():
            theirs = adapter.logits(batch)
        targets = SoftTargets.full(theirs, objective.temperature)
        losses = step_losses(states, logits, batch, objective, progress, size, None, share, targets)
        if share is not None:  # the student has not heard the clip that the teacher has
            return losses
        each = adapter.backward(theirs, logits, batch, size)
        return replace(losses, terms={**losses.terms, ADAPTED: each})

    @torch.no_grad()
    def _clean_logits(self, batch: Batch) -> Tensor:
        """The student's logits for the clips without noise or masks. -> [labels, vocabulary]"""
        features = self.family.spectrum(batch.clean_waves, batch.samples, batch.heard)
        _, logits, _ = self.wrapped(features, batch.attention_mask, batch.inputs, batch.labels, batch.labelled, False)
        assert logits is not None  # noqa: S101  a stage with this loss decodes
        return logits[: len(batch.labelled)]

    def _proposed(self, on_policy: OnPolicy, batch: Batch, audio: Tensor, encoded: bool) -> tuple[Batch, SoftTargets]:
        """The micro-batch with the student's own transcripts; the time it takes is counted."""
        with self.timers.timing("sampling"), torch.no_grad():
            states = audio if encoded else self.family.encode(self.module.model, audio, batch.attention_mask)
            return on_policy.propose(self.module.model, batch, states)
