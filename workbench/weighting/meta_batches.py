"""What training passes to a weighting that looks ahead: labels of training and validation utterances, with what their gradients need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

FoundT = TypeVar("FoundT")


@dataclass(frozen=True)
class TrainBatch:
    """A training micro-batch as the look-ahead sees it."""

    ids: Sequence[str]
    hidden: Tensor  # [labels, width]: what the projection is given
    residuals: Tensor  # [losses, labels, vocabulary]: derivative of each label's losses with respect to its logits; the task loss's first
    utterance_index: Tensor  # int64 [labels]: utterance of each label
    logits: Tensor  # [labels, vocabulary]
    labels: Tensor  # int64 [labels]
    share: Tensor  # [labels]: of each label in the batch's loss, see `label_shares`
    # derivative of each label's task loss as a function of all logits, where it is not that of cross-entropy
    residual_of: Callable[[Tensor], Tensor] | None = None

    def as_validation(self) -> ValidationBatch:
        """The batch's own labels in place of validation labels, for an outer loss that includes training loss."""
        return ValidationBatch(self.hidden, self.logits, self.labels, self.share, self.residual_of)


@dataclass(frozen=True)
class ValidationBatch:
    """Labels whose cross-entropy after the step is the outer loss, or part of it."""

    hidden: Tensor  # [labels, width]
    logits: Tensor  # [labels, vocabulary]
    labels: Tensor  # int64 [labels]
    weight: Tensor  # [labels]: share of each label in the outer loss
    residual_of: Callable[[Tensor], Tensor] | None = None  # as in TrainBatch


class MetaBatches(Protocol):
    """What training offers to a weighting that looks ahead."""

    learning_rate: float  # the optimizer's, of the next step

    def pairs(self, whole: bool) -> Iterator[tuple[TrainBatch, Sequence[ValidationBatch]]]:
        """This process's training micro-batches, each with the next validation batch, or with all of them if `whole`.

        The weights of the validation labels add up to 1 over what comes with one micro-batch.
        """
        ...

    def gather_dict(self, found: dict[str, FoundT]) -> dict[str, FoundT]:
        """The entries of all processes."""
        ...
