"""Weights learnt by looking one step ahead on the validation set (ALM-KD, arXiv 2202.03250; its successor AMAL).

theta' = theta - rate * sum over losses and utterances of w * g, where g is the gradient of one loss of one utterance with
respect to the *output projection alone*. What a weight is worth is d CE_validation(theta') / dw.

A gradient of [vocabulary, width] for each utterance is never made. With r the residual of a label (the derivative of its
loss by its logits) and h the hidden state before the projection, a label's gradient is r h', so that the step changes the
logits of a validation label v by -rate * sum_t c_t (h_t . h_v) r_t, and the inner product of two labels' gradients is
(r_t . r_v)(h_t . h_v).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from workbench.objectives import per_utterance
from workbench.weighting.protocol import Evidence, Weighting, Weights

LEAST_RESIDUAL = 1e-4  # of a token at any label, as a share of the largest of all, for the step to move it


@dataclass(frozen=True)
class Probed:
    """A training micro-batch as the look-ahead sees it."""

    ids: Sequence[str]
    hidden: Tensor  # [labels, width]: what the projection is given
    residuals: Tensor  # [losses, labels, vocabulary]: derivative of each label's losses by its logits; the task's first
    owner: Tensor  # int64 [labels]: utterance of each label


@dataclass(frozen=True)
class Held:
    """Validation utterances as the look-ahead sees them."""

    hidden: Tensor  # [labels, width]
    logits: Tensor  # [labels, vocabulary]
    labels: Tensor  # int64 [labels]
    weight: Tensor  # [labels]: 1 / (labels of the utterance * utterances), so that utterances count alike


class Probe(Protocol):
    """What training offers to a weighting that looks ahead."""

    def pairs(self) -> Iterator[tuple[Probed, Held]]:
        """This process's training micro-batches, each with the next validation batch."""
        ...

    def gathered(self, found: dict[str, Any]) -> dict[str, Any]:
        """The entries of all processes."""
        ...


def weight_gradients(batch: Probed, held: Held, weights: Tensor, rate: float) -> Tensor:
    """D CE_validation(theta') / dw of each loss of each utterance, through one step of size `rate`.

    Args:
        batch: training utterances; the step is on mean_i [sum of w * loss_i].
        held: validation utterances.
        weights: w [losses, utterances].
        rate: of the look-ahead step, plain gradient descent.

    Returns:
        [losses, utterances].
    """
    utterances = weights.shape[1]
    counts = torch.bincount(batch.owner, minlength=utterances).clamp(min=1)
    share = 1.0 / (counts[batch.owner] * utterances)  # [labels]: of a label in the batch's loss
    kernel = held.hidden.float() @ batch.hidden.float().t()  # [validation labels, labels]: h_v . h_t
    shares = weights[:, batch.owner] * share  # [losses, labels]
    # the vocabulary is the long axis: the losses are summed by the product, not before it
    mixture = (kernel[:, None] * shares).flatten(1)  # [validation labels, losses * labels]
    ahead = torch.addmm(held.logits.float(), mixture, batch.residuals.flatten(0, 1), alpha=-rate)
    pull = ahead.softmax(-1)  # [validation labels, vocabulary]
    pull[torch.arange(len(pull), device=pull.device), held.labels] -= 1
    # [labels, vocabulary]: the validation gradient as each training label meets it
    mixed = (kernel * held.weight[:, None]).t() @ pull
    inner = torch.einsum("tv,ltv->lt", mixed, batch.residuals)  # [losses, labels]
    return torch.stack([-rate * per_utterance(row, batch.owner, utterances) / utterances for row in inner])


def concentrated(batch: Probed, held: Held) -> tuple[Probed, Held]:
    """The same look-ahead over those tokens that the step moves, all others as one whose logit stays.

    A student that has learnt anything is sure of most tokens' absence: a hundredth of Whisper's vocabulary is left, and gradients
    change by less than a thousandth of their norm (docs/decisions/0011).
    """
    largest = batch.residuals.abs().amax((0, 1))  # [vocabulary]
    moved = largest > LEAST_RESIDUAL * largest.max()
    kept = moved.nonzero()[:, 0]
    others = held.logits.float().masked_fill(moved, -torch.inf).logsumexp(-1, keepdim=True)
    logits = torch.cat([held.logits.float()[:, kept], others], 1)
    place = torch.full((len(moved),), len(kept), device=kept.device)
    place[kept] = torch.arange(len(kept), device=kept.device)
    residuals = torch.nn.functional.pad(batch.residuals[:, :, kept], (0, 1))
    return replace(batch, residuals=residuals), replace(held, logits=logits, labels=place[held.labels])


class LookAheadSettings(BaseModel):
    """Options that weightings with memory share; how often and how long is their own."""

    model_config = ConfigDict(extra="forbid")
    first: int = Field(ge=0, description="epoch (from 0) before which weights are learnt first")
    every: int = Field(10, ge=1, description="epochs between updates")
    repeats: int = Field(ge=1, description="steps of the weights in one update")
    rate: float = Field(0.1, gt=0, description="[our interpretation] of the look-ahead step of the projection")
    step: float = Field(0.1, gt=0, description="of the weights")
    gradient_scale: Literal["raw", "rms"] = Field(
        "rms",
        description="[our interpretation] rms divides by the batch's root mean square, so one step fits every model",
    )


class LearntWeights(Weighting):
    """A weight of each loss for each utterance, learnt before some epochs and kept by utterance id."""

    def __init__(self, first: int, every: int) -> None:
        self.first, self.every = first, every
        self.weights: dict[str, list[float]] = {}  # one for each loss

    def initial(self, name: str, losses: int) -> list[float]:
        """Weights of an utterance before any were learnt."""
        raise NotImplementedError

    def improved(self, batch: Probed, held: Held, weights: Tensor) -> Tensor:
        """Better weights of a micro-batch. [losses, utterances] -> [losses, utterances]"""
        raise NotImplementedError

    def looks_ahead(self, epoch: int) -> bool:
        """In epoch `first` and every so many after it."""
        return epoch >= self.first and (epoch - self.first) % self.every == 0

    def look_ahead(self, probe: Probe) -> None:
        """Improve the weights of every training utterance, a micro-batch at a time."""
        found: dict[str, Any] = {}
        for batch, held in probe.pairs():
            before = self._stacked(batch.ids, len(batch.residuals), batch.hidden.device)
            after = self.improved(*concentrated(batch, held), before)
            found.update(zip(batch.ids, after.t().tolist(), strict=True))
        self.weights.update(probe.gathered(found))

    def __call__(self, evidence: Evidence) -> Weights:
        """The weights as they were learnt last."""
        teachers = max(len(evidence.by_teacher), 1)
        stacked = self._stacked(evidence.ids, 1 + teachers, evidence.task.device)
        return Weights(stacked[0], stacked[1:])

    def _stacked(self, ids: Sequence[str], losses: int, device: torch.device) -> Tensor:
        """[losses, utterances]"""
        rows = [self.weights.get(name) or self.initial(name, losses) for name in ids]
        return torch.tensor(rows, device=device).t()

    def state_dict(self) -> dict[str, Any]:
        """The weights of all utterances."""
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.weights = dict(state["weights"])


def normalized(gradient: Tensor, scale: str) -> Tensor:
    """A gradient as it is (`raw`), or divided by its root mean square (`rms`), so that a step moves weights by about its size."""
    if scale == "raw":
        return gradient
    return gradient / gradient.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
