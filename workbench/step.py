"""One training step: forward the student, compare with the teacher's targets, weigh, sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.data import Batch
from workbench.families.protocol import Family, Tokens
from workbench.objectives import per_utterance, state_mse
from workbench.recipe import Stage
from workbench.token_losses import token_losses
from workbench.weighting import Weighting


class Student(nn.Module):
    """The student as one module whose forward is a whole step's, which is what DDP and torch.compile wrap."""

    def __init__(self, model: Any, family: Family, stage: Stage) -> None:
        super().__init__()
        self.model, self.family = model, family
        self.encoder_frozen, self.decoding = stage.trainable == "decoder", stage.decoding
        self.checkpointing = stage.activation_checkpointing
        for name, parameter in model.named_parameters():
            in_encoder = name.startswith("model.encoder.")
            trained = stage.trainable == "all" or (stage.trainable == "encoder") == in_encoder
            # sinusoidal encoder positions are constants in Whisper
            parameter.requires_grad_(trained and "encoder.embed_positions" not in name)

    def forward(
        self, audio: Tensor, heard: Tensor, inputs: Tensor, labels: Tensor, labelled: Tensor, encoded: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Encoder states and, if the stage decodes, logits.

        Args:
            audio: features [utterances, mels, frames], or encoder states [utterances, positions, width].
            heard: which positions an utterance has, bool [utterances, positions].
            inputs: decoder inputs [utterances, tokens].
            labels: labels [utterances, tokens].
            labelled: flat places of the labelled positions [labels].
            encoded: whether `audio` are encoder states.

        Returns:
            States [utterances, positions, width] and logits [labels, vocabulary] or None.
        """
        if encoded:
            states = audio
        else:
            with torch.set_grad_enabled(not self.encoder_frozen and torch.is_grad_enabled()):
                states = self.family.encode(self.model, audio, heard, self.checkpointing)
        if not self.decoding:
            return states, None
        tokens = Tokens(inputs, labels)
        return states, self.family.logits(self.model, states, tokens, labelled, heard, self.checkpointing)


@dataclass(frozen=True)
class StepLosses:
    """What a micro-batch computed: the loss to differentiate, and values an utterance to log."""

    loss: Tensor  # scalar: this micro-batch's share of the step's loss
    task: Tensor  # [utterances], detached; zeros when the stage does not decode
    distillation: Tensor  # [utterances], detached
    matching: Tensor  # [utterances], detached
    alpha: Tensor  # [utterances]: weight of distillation
    log: dict[str, float]


@dataclass(frozen=True)
class StepSize:
    """What the sums over a whole step, of all micro-batches and processes, are divided by."""

    utterances: float
    tokens: float


def step_losses(
    states: Tensor,
    logits: Tensor | None,
    batch: Batch,
    stage: Stage,
    temperature: float,
    weighting: Weighting,
    progress: float,
    size: StepSize,
) -> StepLosses:
    """This micro-batch's share of the step's loss, mean_i [w_i l_i + v_i d_i + gamma * matching_i] over all its clips.

    With `average_over: tokens` the first two are averaged over tokens: an utterance counts by how many it has. Shares add
    up to the loss of the whole step, so a step in parts has the gradient of the whole.

    Args:
        states: the student's encoder states [utterances, positions, width].
        logits: the student's logits [labels, vocabulary], or None.
        batch: labels and the teacher's targets, on the same device.
        stage: factors.
        temperature: tau of the distillation loss.
        weighting: gives w and v from detached losses.
        progress: share of the stage's steps done, in [0, 1].
        size: utterances and tokens of the whole step.
    """
    utterances = len(batch.ids)
    zeros = states.new_zeros(utterances, dtype=torch.float32)
    matching = state_mse(states, batch.states, batch.frames) if stage.encoder_matching else zeros
    loss = stage.encoder_matching * matching.sum() / size.utterances
    task = distillation = alpha = zeros
    log: dict[str, float] = {}
    if logits is not None:
        labels = batch.labels.flatten().index_select(0, batch.labelled)
        tokens = token_losses(logits, labels, batch.top_ids, batch.top_logits, batch.log_normalizer, temperature)
        task, distillation = (per_utterance(values, batch.owner, utterances) for values in tokens)
        weights = weighting(batch.ids, task.detach(), distillation.detach(), batch.teacher_loss, progress)
        each = weights.task * task + weights.distillation * distillation
        by_tokens = stage.average_over == "tokens"
        loss = loss + ((each * batch.label_counts).sum() / size.tokens if by_tokens else each.sum() / size.utterances)
        alpha, log = weights.distillation, weights.log
    if not batch.real:
        loss = loss * 0.0
    return StepLosses(loss, task.detach(), distillation.detach(), matching.detach(), alpha, log)


def weight_columns(losses: StepLosses, batch: Batch) -> Tensor:
    """What weight and losses every utterance of a micro-batch had. -> [columns of run_log.WEIGHTS, utterances]"""
    columns = (losses.alpha, losses.task, losses.distillation, losses.matching, batch.teacher_loss)
    return torch.stack([column.float() for column in columns])
