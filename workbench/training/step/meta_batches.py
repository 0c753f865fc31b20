"""The student's hidden states and residuals on training and validation utterances, for a weighting that looks ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from workbench.corpus import Utterance
from workbench.evaluation.transcribe import EncodedClips
from workbench.models.protocol import Family
from workbench.training.step.batches import Batch
from workbench.training.step.losses import Objective, StageProgress, losses_by_token
from workbench.weighting.meta_batches import TrainBatch, ValidationBatch
from workbench.weighting.meta_gradients import label_shares

FoundT = TypeVar("FoundT")
VALIDATION_LABELS = 128  # labels in one look-ahead; its cost is proportional to their number
VALIDATION_SEED = 0  # of the order in which validation utterances are grouped, the same in every run


class Gather(Protocol):
    """Joins what the processes found; each must call it."""

    def __call__(self, found: dict[str, FoundT], /) -> dict[str, FoundT]: ...


class StudentMetaBatches:
    """Implements `weighting.meta_batches.MetaBatches`."""

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        batches: Iterable[Batch],
        audio: Callable[[Batch], tuple[Tensor, bool]],
        validation: EncodedClips,
        objective: Objective,
        progress: StageProgress,
        learning_rate: float,
        gather: Gather,
    ) -> None:
        """Bind what is needed.

        Args:
            model: the student.
            family: runs it.
            batches: this process's training micro-batches, on any device.
            audio: returns the student's input for a batch, features or frozen states, and whether they are states.
            validation: the validation utterances with the student's encoder states.
            objective: the stage's losses.
            progress: position in the stage.
            learning_rate: the optimizer's learning rate in the next step.
            gather: joins the processes' dictionaries.
        """
        self.model, self.family, self.batches, self.audio = model, family, batches, audio
        self.validation, self.objective, self.progress, self.gather = validation, objective, progress, gather
        self.learning_rate, self.average_over = learning_rate, objective.stage.average_over
        self.device = next(model.parameters()).device

    def pairs(self, whole: bool) -> Iterator[tuple[TrainBatch, Sequence[ValidationBatch]]]:
        """Training micro-batches, each with all validation utterances, or with one group of them in turn."""
        everything = self._all_validation() if whole else None
        turns = self._validation_in_turn()
        for batch in self.batches:
            if batch.is_real:
                yield self._train_batch(batch.to(self.device)), everything or [next(turns)]

    def gather_dict(self, found: dict[str, FoundT]) -> dict[str, FoundT]:
        """The entries of all processes."""
        return self.gather(found)

    def _train_batch(self, batch: Batch) -> TrainBatch:
        with torch.no_grad():
            audio, encoded = self.audio(batch)
            states = audio if encoded else self.family.encode(self.model, audio, batch.attention_mask)
            hidden = self.family.hidden(self.model, states, batch.tokens, batch.labelled, batch.attention_mask)
            logits = self.family.project(self.model, hidden)
        logits.requires_grad_()
        # a label's loss depends on its own logits alone, so one backward pass gives every label's residual
        _, by_teacher = losses_by_token(logits, batch, self.objective, self.progress)
        residuals = [torch.autograd.grad(row.sum(), logits, retain_graph=True)[0] for row in by_teacher]
        labels = batch.flat_labels()
        return TrainBatch(
            batch.ids,
            hidden,
            torch.stack([_task_residual(logits, labels), *residuals]),
            batch.utterance_index,
            logits.detach(),
            labels,
            label_shares(batch.utterance_index, len(batch.ids), self.average_over),
        )

    def _validation_in_turn(self) -> Iterator[ValidationBatch]:
        made: list[ValidationBatch] = []
        for group in _groups(self.validation, self.family):
            batch = self._validation_batch(group)
            made.append(batch)
            yield batch
        while True:
            yield from made

    def _all_validation(self) -> list[ValidationBatch]:
        """All validation utterances, in parts whose weights add up to 1."""
        parts = [self._validation_batch(group) for group in _groups(self.validation, self.family)]
        utterances = len(self.validation.utterances)
        if self.average_over == "tokens":
            size = [len(part.labels) / sum(len(p.labels) for p in parts) for part in parts]
        else:
            size = [len(group) / utterances for group in _groups(self.validation, self.family)]
        return [replace(part, weight=part.weight * s) for part, s in zip(parts, size, strict=True)]

    @torch.no_grad()
    def _validation_batch(self, group: Sequence[int]) -> ValidationBatch:
        utterances: list[Utterance] = [self.validation.utterances[i] for i in group]
        tokens = self.family.tokens([u.text for u in utterances], [u.language for u in utterances]).to(self.device)
        states, attention_mask = self.validation.padded(self.model, group)
        hidden = self.family.hidden(self.model, states, tokens, None, attention_mask)
        utterance_index = (tokens.labels >= 0).nonzero()[:, 0]
        weight = label_shares(utterance_index, len(group), self.average_over)
        labels = tokens.labels[tokens.labels >= 0]
        return ValidationBatch(hidden, self.family.project(self.model, hidden), labels, weight)


@torch.no_grad()
def _task_residual(logits: Tensor, labels: Tensor) -> Tensor:
    """Derivative of cross-entropy with respect to the logits. [labels, vocabulary] -> [labels, vocabulary]"""
    residual = logits.softmax(-1)
    residual[torch.arange(len(labels), device=labels.device), labels] -= 1
    return residual


def _groups(validation: EncodedClips, family: Family) -> Iterator[list[int]]:
    """Validation utterances in groups of at most VALIDATION_LABELS labels.

    They are shuffled, because in the order of their ids one-word clips may be adjacent.
    """
    group: list[int] = []
    labels = 0
    by_id = sorted(range(len(validation.utterances)), key=lambda i: validation.utterances[i].id)
    for i in np.random.default_rng(VALIDATION_SEED).permutation(by_id).tolist():
        utterance = validation.utterances[i]
        count = int((family.tokens([utterance.text], [utterance.language]).labels >= 0).sum())
        if group and labels + count > VALIDATION_LABELS:
            yield group
            group, labels = [], 0
        group.append(i)
        labels += count
    if group:
        yield group
