"""The student's hidden states and residuals on training and validation utterances, for a weighting that looks ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from workbench.corpus import Utterance
from workbench.evaluation.transcribe import EncodedClips
from workbench.losses.criterion import Predictions
from workbench.models.protocol import Family, Tokens
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
        predictions = batch.predictions()
        return TrainBatch(
            batch.ids,
            hidden,
            torch.stack([self._residual(predictions, logits), *residuals]),
            batch.utterance_index,
            logits.detach(),
            predictions.labels,
            label_shares(batch.utterance_index, len(batch.ids), self.average_over, batch.label_counts),
            self._residual_of(predictions),
        )

    def _residual(self, predictions: Predictions, logits: Tensor) -> Tensor:
        """Derivative of each prediction's task loss with respect to its logits. [labels, vocabulary] -> [labels, vocabulary]"""
        with torch.enable_grad():
            at = logits.detach().float().requires_grad_()
            residual: Tensor = torch.autograd.grad(self.objective.criterion.task(at, predictions).sum(), at)[0]
        return residual

    def _residual_of(self, predictions: Predictions) -> Callable[[Tensor], Tensor] | None:
        """The same as a function of the logits, where a prediction's loss depends on others' logits too."""
        if self.objective.criterion.separable:
            return None
        return partial(self._residual, predictions)

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
            counts = [self._tokens_of(group) for group in _groups(self.validation, self.family)]
            size = [count / sum(counts) for count in counts]
        else:
            size = [len(group) / utterances for group in _groups(self.validation, self.family)]
        return [replace(part, weight=part.weight * s) for part, s in zip(parts, size, strict=True)]

    @torch.no_grad()
    def _validation_batch(self, group: Sequence[int]) -> ValidationBatch:
        tokens = self._tokens(group).to(self.device)
        states, attention_mask = self.validation.padded(self.model, group)
        hidden = self.family.hidden(self.model, states, tokens, None, attention_mask)
        predicted = self.family.predicted(tokens, attention_mask)
        utterance_index = predicted.nonzero()[:, 0]
        counts = (tokens.labels >= 0).sum(1).clamp(min=1)
        weight = label_shares(utterance_index, len(group), self.average_over, counts)
        if self.objective.criterion.separable:
            labels = tokens.labels[predicted]
        else:  # the loss is the whole utterance's
            labels = torch.full_like(utterance_index, -1)
        residual_of = self._residual_of(Predictions(tokens.labels, labels, utterance_index))
        return ValidationBatch(hidden, self.family.project(self.model, hidden), labels, weight, residual_of)

    def _tokens(self, group: Sequence[int]) -> Tokens:
        utterances: list[Utterance] = [self.validation.utterances[i] for i in group]
        return self.family.tokens([u.text for u in utterances], [u.language for u in utterances])

    def _tokens_of(self, group: Sequence[int]) -> int:
        return int((self._tokens(group).labels >= 0).sum())


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
