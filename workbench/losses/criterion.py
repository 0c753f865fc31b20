"""How a family's task and distillation losses are computed at its predictions: labels of a decoder, or frames of a CTC head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from workbench.config.sections import DivergenceRecipe
from workbench.losses.ctc import aligned_tokens, ctc_losses, frame_weights
from workbench.losses.divergences import SampledTargets, SoftTargets, distillation, task_and_distillation_losses
from workbench.losses.objectives import cross_entropy
from workbench.models.protocol import Family

Targets = SoftTargets | SampledTargets


@dataclass(frozen=True)
class Predictions:
    """What a micro-batch's predictions are compared with; those of all utterances in order."""

    transcripts: Tensor  # int64 [utterances, tokens], negative where there is none
    labels: (
        Tensor  # int64 [predictions]: the label of each; of frames what is aligned to them, -1 where that is not known
    )
    utterance_index: Tensor  # int64 [predictions]: utterance of each


class Criterion(Protocol):
    """Losses at each prediction, in fp32, whose means over an utterance's predictions are the utterance's losses."""

    separable: ClassVar[bool]  # whether a prediction's task loss depends on its own logits and label alone

    def labels(self, logits: Tensor, transcripts: Tensor, predicted: Tensor) -> Tensor:
        """The label of each prediction, of a CTC head what it aligns to each frame itself.

        Args:
            logits: a model's [predictions, vocabulary].
            transcripts: int64 [utterances, tokens], negative where there is none.
            predicted: where the predictions are, as `Family.predicted`.

        Returns:
            int64 [predictions], -1 where nothing can be aligned.
        """
        ...

    def task(self, logits: Tensor, predictions: Predictions) -> Tensor:
        """Task loss. logits: [predictions, vocabulary] -> [predictions]"""
        ...

    def distillation(
        self,
        logits: Tensor,
        predictions: Predictions,
        targets: Targets,
        divergence: DivergenceRecipe,
        temperature: float,
        taught: Tensor | None = None,
    ) -> Tensor:
        """Distillation loss.

        Args:
            logits: the student's [predictions, vocabulary].
            predictions: what they are of.
            targets: the teacher's distribution at each.
            divergence: which loss.
            temperature: tau.
            taught: bool [predictions]: where there are targets; everywhere by default.

        Returns:
            [predictions].
        """
        ...

    def task_and_distillation(
        self,
        logits: Tensor,
        predictions: Predictions,
        targets: Targets,
        divergence: DivergenceRecipe,
        temperature: float,
        taught: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both losses; arguments as for `distillation`."""
        ...


class CrossEntropy:
    """Each label by itself: cross-entropy, and the divergence from the teacher's distribution."""

    separable: ClassVar[bool] = True

    def labels(self, logits: Tensor, transcripts: Tensor, predicted: Tensor) -> Tensor:
        """The labels of the transcripts themselves."""
        return transcripts[predicted]

    def task(self, logits: Tensor, predictions: Predictions) -> Tensor:
        """Cross-entropy of each label."""
        return cross_entropy(logits, predictions.labels)

    def distillation(
        self,
        logits: Tensor,
        predictions: Predictions,
        targets: Targets,
        divergence: DivergenceRecipe,
        temperature: float,
        taught: Tensor | None = None,
    ) -> Tensor:
        """The divergence at each label."""
        return distillation(logits, targets, divergence, temperature)

    def task_and_distillation(
        self,
        logits: Tensor,
        predictions: Predictions,
        targets: Targets,
        divergence: DivergenceRecipe,
        temperature: float,
        taught: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both, in one pass over the vocabulary where that is possible."""
        return task_and_distillation_losses(logits, predictions.labels, targets, divergence, temperature)


@dataclass(frozen=True)
class Ctc:
    """Whole utterances: CTC over all alignments, and the divergence at each frame with frames that are blank counting less; see ctc.py."""

    separable: ClassVar[bool] = False
    blank: int

    def labels(self, logits: Tensor, transcripts: Tensor, predicted: Tensor) -> Tensor:
        """The likeliest token at each frame given the transcript."""
        return aligned_tokens(logits, transcripts, predicted.nonzero()[:, 0], self.blank)

    def task(self, logits: Tensor, predictions: Predictions) -> Tensor:
        """The utterance's CTC loss per token, at each of its frames."""
        return ctc_losses(logits, predictions.transcripts, predictions.utterance_index, self.blank)

    def distillation(
        self,
        logits: Tensor,
        predictions: Predictions,
        targets: Targets,
        divergence: DivergenceRecipe,
        temperature: float,
        taught: Tensor | None = None,
    ) -> Tensor:
        """The divergence at each frame times the frame's weight."""
        weights = frame_weights(
            logits, targets, temperature, predictions.utterance_index, self.blank, divergence.blank_weight, taught
        )
        if taught is None or bool(taught.all()):
            return weights * distillation(logits, targets, divergence, temperature)
        places = taught.nonzero()[:, 0]  # of the others there is nothing to compare with
        there = distillation(logits[places], _at(targets, places), divergence, temperature)
        return weights * torch.zeros_like(weights).index_copy(0, places, there)

    def task_and_distillation(
        self,
        logits: Tensor,
        predictions: Predictions,
        targets: Targets,
        divergence: DivergenceRecipe,
        temperature: float,
        taught: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.task(logits, predictions), self.distillation(
            logits, predictions, targets, divergence, temperature, taught
        )


def criterion_of(family: Family) -> Criterion:
    """The losses of a family's models."""
    if family.objective == "cross_entropy":
        return CrossEntropy()
    assert family.blank is not None  # noqa: S101  which every family with this objective has
    return Ctc(family.blank)


def _at(targets: Targets, places: Tensor) -> Targets:
    """The targets of some predictions."""
    if isinstance(targets, SampledTargets):
        return SampledTargets(targets.ids[places], targets.weights[places], targets.entropy[places])
    ids = None if targets.ids is None else targets.ids[places]
    return SoftTargets(ids, targets.logits[places], targets.log_normalizer[places])
