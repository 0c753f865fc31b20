"""An earlier or averaged version of the student as its teacher, as in ASKD's second phase."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from workbench.core.errors import UserError
from workbench.core.machine.distributed import is_sharded
from workbench.losses.divergences import SoftTargets
from workbench.models.protocol import Family
from workbench.training.step.batches import Batch
from workbench.weighting import SelfTeacherSettings


class SelfTeacher:
    """A copy of the student's trained parameters, sharing the frozen ones; `intermediate` needs no copy."""

    def __init__(self, model: nn.Module, family: Family, plan: SelfTeacherSettings) -> None:
        """Copy a student.

        Args:
            model: the student, its trained parameters marked.
            family: runs it.
            plan: which version of the student.

        Raises:
            UserError: the layer to be taught does not exist or is the last one, or the student is sharded.
        """
        self.family, self.plan = family, plan
        layers = family.decoder_depth(model)
        if plan.kind == "intermediate":
            if plan.layer >= layers - 1:
                raise UserError(
                    f"weighting layer is {plan.layer}; the student has {layers} decoder layers, expected one before the last"
                )
            self.pairs: list[tuple[str, Tensor, Tensor]] = []
            return
        if is_sharded(model):
            raise UserError("a sharded student cannot be its own teacher yet; use DDP, or self_teacher: intermediate")
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.model = copy.deepcopy(model, shared).eval()
        copies = dict(self.model.named_parameters())
        self.pairs = [(name, copies[name], p) for name, p in model.named_parameters() if p.requires_grad]
        self.encodes = any(family.part_of(name) == "encoder" for name, _, _ in self.pairs)
        for _, mine, _ in self.pairs:
            mine.requires_grad_(False)

    @torch.no_grad()
    def on_optimizer_step(self, step: int) -> None:
        """After the student's step (counted from 0): an average follows it, its decay rising as in ema.py."""
        if self.plan.kind == "ema":
            decay = min(self.plan.decay, (1 + step) / (10 + step))
            for _, mine, theirs in self.pairs:
                mine.lerp_(theirs, 1 - decay)

    @torch.no_grad()
    def copy_from_student(self) -> None:
        """Copy the student's current parameters."""
        for _, mine, theirs in self.pairs:
            mine.copy_(theirs)

    @torch.no_grad()
    def targets(self, batch: Batch, audio: Tensor, states: Tensor, logits: Tensor, encoded: bool) -> SoftTargets:
        """Its distribution at each label of a batch.

        Args:
            batch: the micro-batch, on the device.
            audio: the student's input.
            states: the student's encoder states.
            logits: the student's logits [labels (or twice), vocabulary].
            encoded: whether `audio` is states of a frozen encoder.
        """
        if self.plan.kind == "intermediate":
            return SoftTargets.full(logits[: len(batch.utterance_index)], self.plan.temperature)
        own = (
            self.family.encode(self.model, audio, batch.attention_mask)
            if self.encodes and not encoded
            else states.detach()
        )
        said = self.family.logits(self.model, own, batch.tokens, batch.labelled, batch.attention_mask)
        return SoftTargets.full(said, self.plan.temperature)

    def state_dict(self) -> dict[str, Tensor]:
        """Its own parameters by name."""
        return {name: mine for name, mine, _ in self.pairs}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for name, mine, _ in self.pairs:
            mine.copy_(state[name])
