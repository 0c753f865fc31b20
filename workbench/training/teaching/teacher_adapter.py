"""A small adapter before the teacher's output projection, trained along with the student, so that the targets suit the domain and the student.

PESF-KD (arXiv 2205.15308): the teacher is frozen but for an adapter, which is trained while the student is, on the labels and on closeness to
the student's predictions; the student learns from the adapted targets.

The cached targets hold too little to be adapted, so the teacher's decoder runs in the step, on its encoder states at 30 s. Our
interpretation: the adapter is h + up(down(h)) on the input of the output projection, of low rank and at first the identity (as in LoRA,
arXiv 2106.09685, `up` begins at 0); its loss is the mean over utterances of CE(labels) + closeness * KL(adapted teacher || student), in which the
student is a constant, as the adapted teacher is in the student's loss; it has an AdamW of its own, without weight decay, and the stage's
schedule. Only the stage's own teacher is adapted, not `more_teachers`; on-policy micro-batches use the teacher as it is and do not train
the adapter, nor do mixed ones, nor a student that teaches itself; a weighting that looks at the teacher's loss or at its likeliest tokens sees those of the teacher as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from workbench.config.additions import TeacherAdapterRecipe
from workbench.config.sections import DivergenceRecipe
from workbench.losses.divergences import SoftTargets, distillation
from workbench.losses.objectives import cross_entropy, per_utterance
from workbench.models.protocol import Family, Tokens
from workbench.training.step.batches import Batch
from workbench.training.step.losses import StepSize
from workbench.training.teaching.resident_teacher import ResidentTeacher, full_ids

ADAPTED = "adapted_teacher"  # the adapter's loss in metrics.jsonl
ADAPTER = "adapter"  # its file in a checkpoint


class TeacherAdapter:
    """The adapter, its optimizer, and the teacher that it adapts.

    Args:
        settings: rank, learning rate, closeness.
        teacher: the stage's teacher.
        family: the student's, perhaps of a narrowed vocabulary.
        seed: of the initial `down`; the same on every process.
    """

    def __init__(self, settings: TeacherAdapterRecipe, teacher: ResidentTeacher, family: Family, seed: int) -> None:
        self.settings, self.teacher, self.family = settings, teacher, family
        device, width = next(teacher.model.parameters()).device, teacher.family.width
        draw = torch.randn(settings.rank, width, generator=torch.Generator().manual_seed(seed)) / width**0.5
        self.parameters = {
            "down": nn.Parameter(draw.to(device)),  # [rank, width]
            "up": nn.Parameter(torch.zeros(width, settings.rank, device=device)),
        }
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=settings.learning_rate, weight_decay=0.0)

    def logits(self, batch: Batch) -> Tensor:
        """The adapted teacher's logits at each label, differentiable in the adapter. -> [labels, vocabulary]"""
        teacher = self.teacher
        with torch.no_grad():
            states = teacher.states(batch.ids, batch.inputs.device)
            tokens = Tokens(full_ids(batch.inputs, self.family), batch.labels)
            hidden = teacher.family.hidden(teacher.model, states, tokens, batch.labelled)
        adapted = hidden + hidden @ self.parameters["down"].t() @ self.parameters["up"].t()
        logits = teacher.family.project(teacher.model, adapted)
        vocabulary = self.family.vocabulary
        return logits if vocabulary is None else logits[:, vocabulary.ids.to(logits.device)]

    def backward(self, logits: Tensor, student: Tensor, batch: Batch, size: StepSize) -> Tensor:
        """Add the gradient of this micro-batch's share of the adapter's loss; returns the loss of each utterance [utterances].

        Args:
            logits: what `logits` returned.
            student: the student's logits, the same shape; no gradient goes there.
            batch: the micro-batch.
            size: utterances of the whole step.
        """
        labels = batch.flat_labels()
        # KL(teacher || student): the roles of the two in `distillation` are exchanged, with reverse KL as the divergence
        closeness = distillation(logits, SoftTargets.full(student, 1.0), DivergenceRecipe(name="reverse_kl"), 1.0)
        by_label = cross_entropy(logits, labels) + self.settings.closeness * closeness
        each = per_utterance(by_label, batch.utterance_index, len(batch.ids))
        gradients = torch.autograd.grad(each.sum() / size.utterances, list(self.parameters.values()))
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return each.detach()

    def on_optimizer_step(self, schedule: float, total: Callable[[Tensor], Tensor]) -> None:
        """After the student's step: take the adapter's.

        Args:
            schedule: factor of the learning rate.
            total: sums a tensor over the processes, all of which must call it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * schedule
        for parameter in self.parameters.values():
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = total(own)
        # a step that no micro-batch has trained the adapter in would still move it by its momentum
        if any(bool(parameter.grad.any()) for parameter in self.parameters.values() if parameter.grad is not None):
            self.optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter by name, and the optimizer's moments as `parameter::moment`."""
        moments = {
            f"{name}::{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        return {**{name: parameter.detach() for name, parameter in self.parameters.items()}, **moments}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for full_name, value in state.items():
            name, _, key = full_name.partition("::")
            parameter = self.parameters[name]
            if not key:
                parameter.copy_(value)
            else:  # AdamW's count of steps is on the CPU
                self.optimizer.state[parameter][key] = value if value.dim() == 0 else value.to(parameter.device)
