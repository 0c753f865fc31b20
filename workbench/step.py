"""One training step: forward the student, compare with the teacher's targets, weigh, sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.data import Batch
from workbench.families.protocol import IGNORED, Family
from workbench.objectives import cross_entropy, forward_kl_top_k, per_utterance, state_mse
from workbench.recipe import Stage
from workbench.weighting import Weighting


class Student(nn.Module):
    """The student as one module whose forward is a whole step's, which is what DDP and torch.compile wrap."""

    def __init__(self, model: Any, family: Family, stage: Stage) -> None:
        super().__init__()
        self.model, self.family = model, family
        self.encoder_frozen, self.decoding = stage.trainable == "decoder", stage.decoding
        for name, parameter in model.named_parameters():
            in_encoder = name.startswith("model.encoder.")
            trained = stage.trainable == "all" or (stage.trainable == "encoder") == in_encoder
            # sinusoidal encoder positions are constants in Whisper
            parameter.requires_grad_(trained and "encoder.embed_positions" not in name)

    def forward(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Encoder states [utterances, positions, width] and, if the stage decodes, logits [labels, vocabulary]."""
        with torch.set_grad_enabled(not self.encoder_frozen and torch.is_grad_enabled()):
            states = self.family.encode(self.model, features)
        return states, self.family.logits(self.model, states, batch.tokens) if self.decoding else None


@dataclass(frozen=True)
class StepLosses:
    """What a step computed: the loss to differentiate, and values an utterance to log."""

    loss: Tensor  # scalar
    task: Tensor  # [utterances], detached; zeros when the stage does not decode
    distillation: Tensor  # [utterances], detached
    matching: Tensor  # [utterances], detached
    alpha: Tensor  # [utterances]: weight of distillation
    log: dict[str, float]


def step_losses(
    states: Tensor,
    logits: Tensor | None,
    batch: Batch,
    stage: Stage,
    temperature: float,
    weighting: Weighting,
    progress: float,
) -> StepLosses:
    """Combine the losses of a batch: mean_i [w_i l_i + v_i d_i + gamma * matching_i].

    Args:
        states: the student's encoder states [utterances, positions, width].
        logits: the student's logits [labels, vocabulary], or None.
        batch: labels and the teacher's targets, on the same device.
        stage: factors.
        temperature: tau of the distillation loss.
        weighting: gives w and v from detached losses.
        progress: share of the stage's steps done, in [0, 1].
    """
    utterances = len(batch.ids)
    zeros = states.new_zeros(utterances, dtype=torch.float32)
    matching = state_mse(states, batch.states, batch.frames) if stage.encoder_matching else zeros
    loss = stage.encoder_matching * matching.mean()
    task = distillation = alpha = zeros
    log: dict[str, float] = {}
    if logits is not None:
        labels = batch.labels[batch.labels != IGNORED]
        task = per_utterance(cross_entropy(logits, labels), batch.owner, utterances)
        divergence = forward_kl_top_k(logits, batch.top_ids, batch.top_logits, batch.log_normalizer, temperature)
        distillation = per_utterance(divergence, batch.owner, utterances)
        weights = weighting(batch.ids, task.detach(), distillation.detach(), batch.teacher_loss, progress)
        loss = loss + (weights.task * task + weights.distillation * distillation).mean()
        alpha, log = weights.distillation, weights.log
    return StepLosses(loss, task.detach(), distillation.detach(), matching.detach(), alpha, log)


def weight_rows(ids: Sequence[str], losses: StepLosses, teacher: Tensor, step: int, stage: str) -> list[dict[str, Any]]:
    """Rows of weights.parquet: what weight and losses every utterance of a step had."""
    columns = [x.float().tolist() for x in (losses.alpha, losses.task, losses.distillation, losses.matching, teacher)]
    names = ("alpha", "task", "distillation", "matching", "teacher_loss")
    return [
        {"stage": stage, "step": step, "id": name, **dict(zip(names, values, strict=True))}
        for name, *values in zip(ids, *columns, strict=True)
    ]
