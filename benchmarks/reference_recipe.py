"""The field's reference recipe for distilling Whisper, as Distil-Whisper's training script describes it.

Features of 30 s windows, labels padded to 448 tokens, the teacher's forward pass in every step, logits at every position,
0.8 * cross-entropy + 1.0 * tau^2 * KL with tau = 2, AdamW. With a frozen encoder teacher and student share its states.
`Tricks` takes its habits away one by one, which says what each costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from workbench.losses.objectives import cross_entropy, forward_kl_top_k
from workbench.models.protocol import IGNORE_INDEX, Tokens
from workbench.models.whisper.forward.passes import decoder_logits, encode

LABEL_TOKENS = 448
TEMPERATURE = 2.0
TASK, DISTILLATION = 0.8, 1.0


@dataclass(frozen=True)
class Tricks:
    """What is done otherwise than in the reference."""

    short_labels: bool = False  # labels padded to the longest of the batch
    gather: bool = False  # logits at labelled positions only
    cached_teacher: bool = False  # the teacher's top-k logits from disk
    true_length: bool = False  # audio padded to the longest of the batch


class Reference:
    """Teacher, student, optimizer and preprocessed clips."""

    def __init__(
        self, family: Any, teacher: Any, student: Any, frozen: bool, clips: Sequence[Any], cached: Any
    ) -> None:
        self.family, self.teacher, self.student, self.frozen = family, teacher, student, frozen
        for name, parameter in student.named_parameters():
            in_encoder = name.startswith("model.encoder.")
            parameter.requires_grad_(not (frozen and in_encoder) and "encoder.embed_positions" not in name)
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)
        self.clips, self.cached = clips, cached
        self.waves = [u.wave() for u in clips]
        self.features = torch.cat([family.features([wave], 30.0) for wave in self.waves])

    def step(self, chosen: Sequence[int], tricks: Tricks) -> float:
        """One training step on these clips; returns the loss."""
        features, tokens = self._inputs(chosen, tricks)
        student, teacher = self.student, self.teacher
        with torch.set_grad_enabled(not self.frozen):
            states = encode(student, features)
        if tricks.gather:
            task, divergence = self._gathered(chosen, states, features, tokens, tricks)
        else:
            task, divergence = self._everywhere(chosen, student, teacher, states, features, tokens, tricks)
        loss = TASK * task + DISTILLATION * divergence
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss)

    def _inputs(self, chosen: Sequence[int], tricks: Tricks) -> tuple[Tensor, Tokens]:
        if tricks.true_length:
            waves = [self.waves[i] for i in chosen]
            features = self.family.features(waves, max(map(len, waves)) / 16_000 + 0.5)
        else:
            features = self.features[list(chosen)]
        tokens = self.family.tokens([self.clips[i].text for i in chosen], [self.clips[i].language for i in chosen])
        if not tricks.short_labels:
            missing = LABEL_TOKENS - tokens.inputs.shape[1]
            tokens = Tokens(
                F.pad(tokens.inputs, (0, missing), value=self.family.eos_token_id),
                F.pad(tokens.labels, (0, missing), value=IGNORE_INDEX),
            )
        return features, tokens

    def _teacher_states(self, states: Tensor, features: Tensor) -> Tensor:
        return states.detach() if self.frozen else encode(self.teacher, features)

    def _everywhere(
        self, chosen: Any, student: Any, teacher: Any, states: Tensor, features: Tensor, tokens: Tokens, tricks: Tricks
    ) -> tuple[Tensor, Tensor]:
        logits = student(
            encoder_outputs=BaseModelOutput(states), decoder_input_ids=tokens.inputs, use_cache=False
        ).logits
        task = F.cross_entropy(logits.flatten(0, 1), tokens.labels.flatten(), ignore_index=IGNORE_INDEX)
        valid = tokens.labels != IGNORE_INDEX
        if tricks.cached_teacher:
            return task, self._top_k(chosen, logits[valid])
        with torch.no_grad():
            theirs = teacher(
                encoder_outputs=BaseModelOutput(self._teacher_states(states, features)),
                decoder_input_ids=tokens.inputs, use_cache=False,
            ).logits  # fmt: skip
        target = F.softmax(theirs / TEMPERATURE, -1)
        divergence = F.kl_div(F.log_softmax(logits / TEMPERATURE, -1), target, reduction="none")
        divergence = divergence.masked_fill(~valid[..., None], 0.0).sum() / valid.sum()
        return task, TEMPERATURE**2 * divergence

    def _gathered(
        self, chosen: Any, states: Tensor, features: Tensor, tokens: Tokens, tricks: Tricks
    ) -> tuple[Tensor, Tensor]:
        logits = decoder_logits(self.student, states, tokens)
        task = cross_entropy(logits, tokens.labels[tokens.labels != IGNORE_INDEX]).mean()
        if tricks.cached_teacher:
            return task, self._top_k(chosen, logits)
        with torch.no_grad():
            theirs = decoder_logits(self.teacher, self._teacher_states(states, features), tokens)
        target = F.softmax(theirs / TEMPERATURE, -1)
        return task, TEMPERATURE**2 * F.kl_div(F.log_softmax(logits / TEMPERATURE, -1), target, reduction="batchmean")

    def _top_k(self, chosen: Any, logits: Tensor) -> Tensor:
        targets = [self.cached(i) for i in chosen]
        ids = torch.cat([t.top_ids for t in targets]).long()
        values, normalizer = torch.cat([t.top_logits for t in targets]), torch.cat([t.log_normalizer for t in targets])
        return forward_kl_top_k(logits, ids, values, normalizer, TEMPERATURE).mean()
