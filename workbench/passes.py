"""Forward and backward pass of a micro-batch: what the student hears, whose word it learns from, the loss."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.augment import mask_spectrum
from workbench.checkpoints import Position
from workbench.data import Batch
from workbench.divergences import SoftTargets
from workbench.families import Family
from workbench.on_policy import OnPolicy, own_losses
from workbench.recipe_sections import AugmentRecipe
from workbench.self_teacher import SelfTeacher
from workbench.step import Moment, Objective, StepLosses, StepSize, Student, step_losses


class Passes:
    """Runs micro-batches through a stage's student."""

    def __init__(
        self,
        accelerator: Any,
        family: Family,
        module: Student,
        wrapped: Any,
        augment: AugmentRecipe,
        position: Position,
        on_policy: OnPolicy | None,
    ) -> None:
        """Bind a student.

        Args:
            accelerator: Accelerate's.
            family: runs the student.
            module: the student as a module, whose forward a step takes.
            wrapped: the same, compiled and distributed as the run asks for.
            augment: masks on what is heard.
            position: where the time that sampling takes is counted.
            on_policy: samples from the student, if the stage wants it.
        """
        self.accelerator, self.family, self.module, self.wrapped = accelerator, family, module, wrapped
        self.augment, self.position, self.on_policy = augment, position, on_policy
        self.itself: SelfTeacher | None = None

    def audio(self, batch: Batch) -> tuple[Tensor, bool]:
        """What the student is given of a batch, and whether it is states of a frozen encoder."""
        if batch.encoded.numel():
            return batch.encoded.float(), True
        features = self.family.spectrum(batch.waves)
        return mask_spectrum(features, self.augment, np.random.default_rng([*batch.seed, 2])), False

    def __call__(
        self, batch: Batch, objective: Objective, moment: Moment, size: StepSize, teaching: bool = False
    ) -> StepLosses:
        """Forward the student, compare with the targets of the teachers or of itself, weigh, backward.

        Args:
            batch: the micro-batch, on the device.
            objective: the stage's losses.
            moment: when in the stage.
            size: of the whole step.
            teaching: whether the student teaches itself by now.
        """
        audio, encoded = self.audio(batch)
        plan = self.itself.plan if self.itself and teaching else None
        on_policy = self.on_policy
        if teaching or not batch.real or (on_policy is not None and not on_policy.wanted(batch)):
            on_policy = None
        self.module.early = plan.layer if plan is not None and plan.kind == "intermediate" else None
        itself = own = None
        with self.accelerator.autocast():
            if on_policy is not None:
                batch, own = self._proposed(on_policy, batch, audio, encoded)
            states, logits = self.wrapped(audio, batch.heard, batch.inputs, batch.labels, batch.labelled, encoded)
            if teaching and self.itself is not None and logits is not None:
                itself = self.itself.says(batch, audio, states, logits, encoded)
        if own is not None and logits is not None:
            losses = own_losses(states, logits, batch, own, objective, moment, size)
        else:
            losses = step_losses(states, logits, batch, objective, moment, size, itself)
        # DistributedDataParallel averages over the processes what is to be added up
        self.accelerator.backward(losses.loss * self.accelerator.num_processes)
        return losses

    def _proposed(self, on_policy: OnPolicy, batch: Batch, audio: Tensor, encoded: bool) -> tuple[Batch, SoftTargets]:
        """The micro-batch with the student's own transcripts; what that costs is counted."""
        started = time.perf_counter()
        with torch.no_grad():
            states = audio if encoded else self.family.encode(self.module.model, audio, batch.heard)
            found = on_policy.propose(self.module.model, batch, states)
        self.position.sampling_seconds += time.perf_counter() - started
        return found
