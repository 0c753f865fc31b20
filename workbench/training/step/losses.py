"""The losses of a step: compare the student with the labels and the teachers' targets, weigh each utterance, sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from workbench.config.sections import Stage
from workbench.losses.criterion import Criterion, CrossEntropy
from workbench.losses.divergences import SoftTargets
from workbench.losses.objectives import per_utterance, state_mse
from workbench.training.step.batches import Batch
from workbench.training.step.mixup import mixed_losses
from workbench.weighting import Weighting, WeightingInput, Weights


@dataclass(frozen=True)
class StageProgress:
    """A step's position in its stage."""

    fraction: float  # share of the steps done, in [0, 1]
    epoch: int = 0
    epochs: int = 1


@dataclass(frozen=True)
class Objective:
    """What a stage's losses are made of."""

    stage: Stage
    temperature: float  # tau of the distillation loss
    weighting: Weighting
    shares: tuple[float, ...] = (1.0,)  # of each teacher in the distillation loss, adding up to 1
    criterion: Criterion = CrossEntropy()  # noqa: RUF009  how both losses are computed; it has no state


@dataclass(frozen=True)
class StepLosses:
    """What a micro-batch computed: the loss to differentiate, and values of each utterance to log, detached.

    A loss or weight that was not computed is NaN, never 0: the losses of a stage that does not decode, and the task loss and
    weights of an on-policy micro-batch, which no weighting has seen.
    """

    loss: Tensor  # scalar: this micro-batch's share of the step's loss
    task: Tensor  # [utterances]
    distillation: Tensor  # [utterances]
    matching: Tensor  # [utterances]
    task_weight: Tensor  # [utterances]
    alpha: Tensor  # [utterances]: weight of distillation, of all teachers together
    disagreements: Tensor  # scalar: labels where the student's likeliest token differs from the first teacher's
    compared: int  # labels that this was counted over; 0 where no teacher ran
    log: dict[str, float | Tensor]  # see `Weights.log`
    on_policy: bool = False  # the transcripts were the student's own
    terms: Mapping[str, Tensor] = field(default_factory=dict)  # further losses [utterances], by their name in the log

    def plus(self, name: str, factor: float, each: Tensor, size: StepSize) -> StepLosses:
        """With a further loss: `factor` times its mean over the step's utterances. each: [utterances]"""
        loss = self.loss + factor * each.sum() / size.utterances
        return replace(self, loss=loss, terms={**self.terms, name: each.detach()})


@dataclass(frozen=True)
class StepSize:
    """What the sums over a whole step, of all micro-batches and processes, are divided by."""

    utterances: float
    tokens: float


def step_losses(
    states: Tensor,
    logits: Tensor | None,
    batch: Batch,
    objective: Objective,
    progress: StageProgress,
    size: StepSize,
    self_targets: SoftTargets | None = None,
    mix_share: float | None = None,
    adapted: SoftTargets | None = None,
) -> StepLosses:
    """This micro-batch's share of the step's loss, mean_i [w_i l_i + v_i d_i + gamma * matching_i] over all its clips.

    With `average_over: tokens` the first two are averaged over tokens: an utterance counts in proportion to its tokens. With
    `intermediate_ctc` the two have a factor, and intermediate_ctc.py adds the rest. Shares add
    up to the loss of the whole step, so a step in parts has the gradient of the whole.

    Args:
        states: the student's encoder states [utterances, positions, width].
        logits: the student's logits [labels, vocabulary], or None.
        batch: labels and the teachers' targets, on the same device.
        objective: factors and the weighting, which gives w and v from detached losses.
        progress: position in the stage.
        size: utterances and tokens of the whole step.
        self_targets: the self-teacher's distribution, where it replaces the teachers'.
        mix_share: weight of each clip's own audio, where the clips are mixed; the logits are then [2 * labels, vocabulary], in each clip's
            own mix and in that of the clip that it is mixed into.
        adapted: the adapted teacher's distribution, where it replaces the first teacher's.
    """
    stage, weighting = objective.stage, objective.weighting
    utterances = len(batch.ids)
    zeros = states.new_zeros(utterances, dtype=torch.float32)
    matching = state_mse(states, batch.teacher_states, batch.teacher_state_lengths) if stage.encoder_matching else zeros
    loss = stage.encoder_matching * matching.sum() / size.utterances
    if logits is None:
        loss = loss if batch.is_real else loss * 0.0
        unknown = nan_like(zeros)
        return StepLosses(
            loss, unknown, unknown, logged_matching(matching, stage), unknown, unknown, zeros.sum(), 0, {}
        )
    if mix_share is None:
        task_tokens, by_teacher = losses_by_token(logits, batch, objective, progress, self_targets, adapted)
    else:
        halves = [losses_by_token(half, batch, objective, progress, None, adapted) for half in logits.chunk(2)]
        task_tokens, by_teacher = (mixed_losses(torch.cat(pair, -1), mix_share) for pair in zip(*halves, strict=True))
    task = per_utterance(task_tokens, batch.utterance_index, utterances)
    each_teacher = torch.stack([per_utterance(row, batch.utterance_index, utterances) for row in by_teacher])
    shares = each_teacher.new_tensor(objective.shares if self_targets is None else (1.0,))
    theirs = _likeliest(batch)
    weighed = WeightingInput(
        ids=batch.ids,
        task=task.detach(),
        distillation=(shares @ each_teacher).detach(),
        teacher_loss=batch.teacher_loss[0],
        progress=progress.fraction,
        epoch=progress.epoch,
        epochs=progress.epochs,
        by_teacher=each_teacher.detach(),
        utterance_index=batch.utterance_index,
        teacher_right=(theirs == batch.flat_labels()) & (theirs >= 0),
    )
    weights = weighting(weighed)
    if batch.is_real:
        weighting.observe(weighed)
    each, task_weight, alpha = _weighed(weights, task_tokens, by_teacher, task, each_teacher, shares, batch)
    loss = loss + stage.last_layer_share * share_of_step(each, batch, stage, size)
    if not batch.is_real:
        loss = loss * 0.0
    disagreements = ((logits.detach()[: len(theirs)].argmax(-1) != theirs) & (theirs >= 0)).sum()
    compared = len(theirs) if batch.top_ids.shape[-1] else 0  # the teacher does not run once the student teaches itself
    if (taught := batch.taught_by(0)) is not None:
        compared = int(taught.sum())
    return StepLosses(
        loss, task.detach(), weighed.distillation, logged_matching(matching, stage), task_weight, alpha, disagreements,
        compared, weights.log,
    )  # fmt: skip


def share_of_step(each: Tensor, batch: Batch, stage: Stage, size: StepSize) -> Tensor:
    """This micro-batch's share of the mean of a loss over the step's utterances, or over its tokens as `average_over` says. each: [utterances] -> scalar"""
    if stage.average_over == "tokens":
        return (each * batch.label_counts).sum() / size.tokens
    return each.sum() / size.utterances


def nan_like(losses: Tensor) -> Tensor:
    """NaN for each utterance. [utterances] -> [utterances]"""
    return torch.full_like(losses, math.nan)


def logged_matching(matching: Tensor, stage: Stage) -> Tensor:
    """The encoder-state loss to log, which is NaN where the stage has none. [utterances] -> [utterances]"""
    return matching.detach() if stage.encoder_matching else nan_like(matching)


def losses_by_token(
    logits: Tensor,
    batch: Batch,
    objective: Objective,
    progress: StageProgress,
    self_targets: SoftTargets | None = None,
    adapted: SoftTargets | None = None,
) -> tuple[Tensor, Tensor]:
    """Task loss of each label [labels], and distillation loss from each teacher [teachers, labels]."""
    predictions, temperature, criterion = batch.predictions(), objective.temperature, objective.criterion
    divergence = objective.weighting.divergence(objective.stage.divergence, progress.fraction)
    plan = objective.weighting.self_teacher
    last, early = logits[: len(batch.utterance_index)], logits[len(batch.utterance_index) :]
    if self_targets is not None and plan is not None:
        pupil = early if len(early) else last
        own_loss = criterion.distillation(pupil, predictions, self_targets, divergence, plan.temperature)
        return criterion.task(last, predictions), own_loss[None]
    if not batch.top_ids.shape[-1] and adapted is None:  # no teacher has targets for this student
        task = criterion.task(last, predictions)
        return task, torch.zeros_like(task)[None].expand(len(batch.top_ids), -1)
    own = batch.targets(0) if adapted is None else adapted
    task, first = criterion.task_and_distillation(last, predictions, own, divergence, temperature, batch.taught_by(0))
    more = [
        criterion.distillation(last, predictions, batch.targets(m), divergence, temperature, batch.taught_by(m))
        for m in range(1, len(batch.top_ids))
    ]
    return task, torch.stack([first, *more])


def _weighed(
    weights: Weights,
    task_tokens: Tensor,
    by_teacher: Tensor,
    task: Tensor,
    each_teacher: Tensor,
    shares: Tensor,
    batch: Batch,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted loss of each utterance, and its two weights. -> three times [utterances]"""
    if weights.by_token:
        tokens = weights.task * task_tokens + weights.distillation * (shares @ by_teacher)
        columns = (tokens, weights.task, weights.distillation)
        each, task_weight, alpha = (per_utterance(c, batch.utterance_index, len(batch.ids)) for c in columns)
        return each, task_weight.detach(), alpha.detach()
    if weights.distillation.dim() == 2:  # a weight for each teacher
        mixed, alpha = (weights.distillation * each_teacher).sum(0), weights.distillation.sum(0)
    else:
        mixed, alpha = weights.distillation * (shares @ each_teacher), weights.distillation
    return weights.task * task + mixed, weights.task, alpha


def _likeliest(batch: Batch) -> Tensor:
    """The first teacher's likeliest token at each label; -1 where it did not run. -> int64 [labels]"""
    first = batch.top_ids[0]
    return first[:, 0] if first.shape[1] else torch.full_like(batch.utterance_index, -1)


def weight_columns(losses: StepLosses, batch: Batch) -> Tensor:
    """Weights and losses of every utterance of a micro-batch. -> [columns of run.log.WEIGHTS, utterances]"""
    columns = (
        losses.alpha,
        losses.task_weight,
        losses.task,
        losses.distillation,
        losses.matching,
        batch.teacher_loss[0],
    )
    return torch.stack([column.float() for column in columns])
