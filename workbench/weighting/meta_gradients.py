"""Weights learnt by looking one step ahead on the validation set (ALM-KD, arXiv 2202.03250; its successor AMAL).

theta' = theta - rate * sum over losses and utterances of w * g, where g is the gradient of one loss of one utterance with
respect to the *output projection alone*. The gradient of a weight is d CE_validation(theta') / dw.

A gradient of [vocabulary, width] for each utterance is never materialized. With r the residual of a label (the derivative of its loss with
respect to its logits) and h the hidden state before the projection, a label's gradient is r h', so that the step changes the
logits of a validation label v by -rate * sum_t c_t (h_t . h_v) r_t, and the inner product of two labels' gradients is
(r_t . r_v)(h_t . h_v).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.config.weightings import StageSchedule, WeightingSettings
from workbench.weighting.meta_batches import MetaBatches, TrainBatch, ValidationBatch
from workbench.weighting.protocol import Weighting, WeightingInput, Weights

MIN_RESIDUAL = 1e-4  # a token whose residuals are all smaller than this share of the largest is taken not to move


def weight_gradients(batch: TrainBatch, validation: ValidationBatch, weights: Tensor, rate: float) -> Tensor:
    """The derivative d CE(theta') / dw of each loss of each utterance, through one step of size `rate`.

    Args:
        batch: training utterances; the step is on their loss as training averages it, over utterances or over tokens.
        validation: the labels over which CE is computed.
        weights: w [losses, utterances].
        rate: learning rate of the look-ahead step, which is plain gradient descent.

    Returns:
        [losses, utterances].
    """
    kernel = validation.hidden.float() @ batch.hidden.float().t()  # [validation labels, labels]: h_v . h_t
    shares = weights[:, batch.utterance_index] * batch.share  # [losses, labels]
    # the vocabulary is the long axis: the losses are summed by the product, not before it
    mixture = (kernel[:, None] * shares).flatten(1)  # [validation labels, losses * labels]
    ahead = torch.addmm(validation.logits.float(), mixture, batch.residuals.flatten(0, 1), alpha=-rate)
    if validation.residual_of is not None:
        pull = validation.residual_of(ahead)  # [validation labels, vocabulary]
    else:
        pull = ahead.softmax(-1)
        pull[torch.arange(len(pull), device=pull.device), validation.labels] -= 1
    # [labels, vocabulary]: the validation gradient projected on each training label
    mixed = (kernel * validation.weight[:, None]).t() @ pull
    inner = torch.einsum("tv,ltv->lt", mixed, batch.residuals)  # [losses, labels]
    return torch.zeros_like(weights).index_add(1, batch.utterance_index, -rate * inner * batch.share)


def outer_gradients(
    batch: TrainBatch, outer: Sequence[ValidationBatch], weights: Tensor, rate: float, train_share: float = 0.0
) -> Tensor:
    """The derivative d [(1 - s) * CE_validation(theta') + s * CE_train(theta')] / dw with s = `train_share`. -> [losses, utterances]

    CE_train is the cross-entropy of the training micro-batch itself. For the other arguments see `weight_gradients`; the
    validation labels may come in several parts.
    """
    found = torch.zeros_like(weights)
    if train_share < 1:
        for validation in outer:
            found += (1 - train_share) * weight_gradients(batch, validation, weights, rate)
    if train_share > 0:
        found += train_share * weight_gradients(batch, batch.as_validation(), weights, rate)
    return found


def label_shares(utterance_index: Tensor, utterances: int, average_over: str, tokens: Tensor | None = None) -> Tensor:
    """Share of each label in a batch's loss, which is averaged over `utterances` or `tokens`.

    Args:
        utterance_index: utterance of each label, or of each frame of a CTC head, int64 [labels].
        utterances: how many there are.
        average_over: as in a stage.
        tokens: tokens of each utterance, where they are not its labels, int64 [utterances].

    Returns:
        [labels].
    """
    counts = torch.bincount(utterance_index, minlength=utterances)
    if average_over == "tokens":
        tokens = counts if tokens is None else tokens
        return (tokens / counts.clamp(min=1) / tokens.sum().clamp(min=1))[utterance_index]
    return 1.0 / (counts[utterance_index] * utterances)


def restrict_to_moved_tokens(
    batch: TrainBatch, outer: Sequence[ValidationBatch]
) -> tuple[TrainBatch, list[ValidationBatch]]:
    """The same look-ahead over the tokens that the step moves, with all others merged into one whose logit stays.

    A partly trained student gives most tokens almost no probability: a hundredth of Whisper's vocabulary is left, and gradients
    change by less than a thousandth of their norm (docs/decisions/0011). The vocabulary of a CTC head is small, and its loss needs the
    tokens of whole transcripts: it is left as it is.
    """
    if batch.residual_of is not None:
        return batch, list(outer)
    largest = batch.residuals.abs().amax((0, 1))  # [vocabulary]
    moved = largest > MIN_RESIDUAL * largest.max()
    kept = moved.nonzero()[:, 0]
    place = torch.full((len(moved),), len(kept), device=kept.device)
    place[kept] = torch.arange(len(kept), device=kept.device)

    def fewer(logits: Tensor) -> Tensor:
        others = logits.float().masked_fill(moved, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([logits.float()[:, kept], others], 1)

    residuals = torch.nn.functional.pad(batch.residuals[:, :, kept], (0, 1))
    smaller = replace(batch, residuals=residuals, logits=fewer(batch.logits), labels=place[batch.labels])
    return smaller, [
        replace(validation, logits=fewer(validation.logits), labels=place[validation.labels]) for validation in outer
    ]


class LookAheadSettings(WeightingSettings):
    """Options shared by weightings that keep learnt weights; each has its own schedule."""

    EARLIER: ClassVar = {
        "first": "start_epoch",
        "every": "update_every",
        "repeats": "steps_per_update",
        "rate": "inner_learning_rate",
        "step": "weight_learning_rate",
    }  # names of earlier versions

    start_epoch: int = Field(ge=0, description="epoch (from 0) before which weights are learnt for the first time")
    update_every: int = Field(10, ge=1, description="epochs between updates")
    steps_per_update: int = Field(ge=1, description="steps of the weights in one update")
    inner_learning_rate: Annotated[float, Field(gt=0)] | Literal["current"] = Field(
        0.1,
        description="[our interpretation] learning rate of the look-ahead step of the projection; current: the optimizer's learning rate, "
        "as published",
    )
    weight_learning_rate: float = Field(0.1, gt=0, description="learning rate of the weights")
    gradient_scale: Literal["raw", "rms"] = Field(
        "rms",
        description="[our interpretation] rms divides by the batch's root mean square, so one step fits every model",
    )

    def inactive_reason(self, stage: StageSchedule) -> str | None:
        """As for every weighting, or because the first update's epoch is never reached."""
        return start_epoch_problem(self.start_epoch, stage) or super().inactive_reason(stage)

    def look_ahead_rate(self, learning_rate: float) -> float:
        """Size of the look-ahead step where the optimizer has this learning rate."""
        return learning_rate if self.inner_learning_rate == "current" else self.inner_learning_rate


def start_epoch_problem(start_epoch: int, stage: StageSchedule) -> str | None:
    """An error message if the stage ends before epoch `start_epoch`, from which weights are learnt; otherwise None."""
    if start_epoch < stage.epochs:
        return None
    return (
        f"its weights are learnt before epoch {start_epoch} (counted from 0) at the earliest, and the stage reaches {stage.epochs} "
        f"epoch(s); set start_epoch below {stage.epochs}, for example start_epoch: {min(1, stage.epochs - 1)}, update_every: 1"
    )


class MetaLearnedWeighting(Weighting):
    """A weight of each loss for each utterance, learnt before some epochs and kept by utterance id."""

    meta_learned = True
    whole_validation = False  # whether a look-ahead uses the whole validation split instead of a batch of it
    # whether weights are also learnt when the learning rate has changed since the last time
    update_on_learning_rate_change = False

    def __init__(self, start_epoch: int, update_every: int) -> None:
        self.start_epoch, self.update_every = start_epoch, update_every
        self.weights: dict[str, list[float]] = {}  # one for each loss
        self.last_update_learning_rate: float | None = None  # learning rate when weights were last learnt

    def initial(self, name: str, losses: int) -> list[float]:
        """Weights of an utterance before any were learnt."""
        raise NotImplementedError

    def updated_weights(
        self, batch: TrainBatch, outer: Sequence[ValidationBatch], weights: Tensor, learning_rate: float
    ) -> Tensor:
        """Better weights of a micro-batch. [losses, utterances] -> [losses, utterances]"""
        raise NotImplementedError

    def should_look_ahead(self, epoch: int, learning_rate: float) -> bool:
        """Whether to look ahead: in epoch `start_epoch`, at a fixed interval after it, and on learning-rate changes if enabled."""
        if epoch < self.start_epoch:
            return False
        changed = self.update_on_learning_rate_change and learning_rate != self.last_update_learning_rate
        return changed or (epoch - self.start_epoch) % self.update_every == 0

    def look_ahead(self, meta_batches: MetaBatches) -> None:
        """Improve the weights of every training utterance, a micro-batch at a time."""
        found: dict[str, list[float]] = {}
        for batch, outer in meta_batches.pairs(self.whole_validation):
            before = self._stacked(batch.ids, len(batch.residuals), batch.hidden.device)
            after = self.updated_weights(*restrict_to_moved_tokens(batch, outer), before, meta_batches.learning_rate)
            found.update(zip(batch.ids, after.t().tolist(), strict=True))
        self.weights.update(meta_batches.gather_dict(found))
        self.last_update_learning_rate = meta_batches.learning_rate

    def __call__(self, inputs: WeightingInput) -> Weights:
        """The weights as they were learnt last."""
        teachers = max(len(inputs.by_teacher), 1)
        stacked = self._stacked(inputs.ids, 1 + teachers, inputs.task.device)
        return Weights(stacked[0], stacked[1:])

    def _stacked(self, ids: Sequence[str], losses: int, device: torch.device) -> Tensor:
        """[losses, utterances]"""
        rows = [self.weights.get(name) or self.initial(name, losses) for name in ids]
        return torch.tensor(rows, device=device).t()

    def nothing_learnt(self) -> str | None:
        """An error message if the stage ended before the first update."""
        if self.weights:
            return None
        return (
            f"no weights were learnt, because the stage ended before epoch {self.start_epoch} of the stream; "
            "set start_epoch: 0, or train for more steps"
        )

    def state_dict(self) -> dict[str, object]:
        """The weights of all utterances that have learnt ones; first weights follow from the seed and the id."""
        return {"weights": self.weights, "last_update_learning_rate": self.last_update_learning_rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.weights = dict(state["weights"])
        self.last_update_learning_rate = state.get(
            "last_update_learning_rate", state.get("learnt_at")
        )  # its name in earlier versions


def normalized(gradient: Tensor, scale: str) -> Tensor:
    """A gradient as it is (`raw`), or divided by its root mean square (`rms`), so that a step moves weights by about its size."""
    if scale == "raw":
        return gradient
    return gradient / gradient.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
