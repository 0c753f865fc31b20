"""Targets for the student's own transcripts: on-policy distillation.

GKD (arXiv 2306.13649): the student samples a transcript, and learns from the teacher's distributions along it.
Speculative KD (arXiv 2410.11325): while the student samples, each token outside the teacher's `top_k` is replaced by one that
the teacher samples, so that the transcript stays one that the teacher could have written.

A share of the micro-batches is on-policy, the others are the corpus's (GKD's lambda). Our interpretation: on an on-policy
micro-batch the loss is the distillation loss alone with the weight 1, whatever the weighting; the teacher reads 30 s, and its encoder
states are computed once; with a narrowed vocabulary its distribution is the one over the kept tokens; and once a student
teaches itself (ASKD's second phase, which is defined without the teacher) no micro-batch is on-policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from workbench.audio.decode import SAMPLE_RATE
from workbench.config.sections import OnPolicyRecipe
from workbench.losses.divergences import SoftTargets, distillation
from workbench.losses.objectives import per_utterance, state_mse
from workbench.models.protocol import IGNORE_INDEX, Family, Tokens
from workbench.training.step.batches import Batch
from workbench.training.step.losses import Objective, StageProgress, StepLosses, StepSize, logged_matching, nan_like
from workbench.training.teaching.resident_teacher import ResidentTeacher, full_ids


class OnPolicy:
    """Samples from the student, and runs the teacher on the samples."""

    def __init__(self, settings: OnPolicyRecipe, family: Family, teacher: ResidentTeacher) -> None:
        """Bind what is needed.

        Args:
            settings: method, share, temperature.
            family: the student's, perhaps of a narrowed vocabulary.
            teacher: the stage's teacher.
        """
        self.settings, self.family, self.teacher = settings, family, teacher

    def is_on_policy(self, batch: Batch) -> bool:
        """Whether this micro-batch is on-policy; its seed decides."""
        return bool(np.random.default_rng([*batch.seed, 3]).random() < self.settings.fraction)

    @torch.no_grad()
    def propose(self, model: nn.Module, batch: Batch, states: Tensor) -> tuple[Batch, SoftTargets]:
        """The micro-batch with the student's own transcripts, and the teacher's distributions along them.

        Args:
            model: the student.
            batch: the micro-batch; its utterances, prompts and audio are kept.
            states: the student's encoder states [utterances, positions, width].
        """
        prompts = self._prompts(batch)
        teacher = self.teacher
        audio = teacher.states(batch.ids, states.device)
        replaced = self._replacer(audio, prompts) if self.settings.method == "speculative" else None
        # states of a frozen encoder are pooled already
        a_state = self.family.samples_per_position * (self.family.pooling(model) if batch.student_states.numel() else 1)
        seconds = (batch.attention_mask.sum(1) * a_state / SAMPLE_RATE).tolist()
        languages = [teacher.languages[name] for name in batch.ids]
        limits = [self.family.token_limit(s, language) for s, language in zip(seconds, languages, strict=True)]
        generator = torch.Generator(device=states.device).manual_seed(
            int(np.random.default_rng([*batch.seed, 4]).integers(2**31))
        )
        said = sample(
            self.family,
            model,
            states,
            batch.attention_mask,
            prompts,
            limits,
            self.settings.temperature,
            generator,
            replaced,
        )
        labels = torch.full((len(said), prompts.shape[1] - 1 + max(map(len, said))), IGNORE_INDEX, device=states.device)
        for row, ids in zip(labels, said, strict=True):
            row[prompts.shape[1] - 1 : prompts.shape[1] - 1 + len(ids)] = torch.tensor(ids)
        written = torch.where(labels == IGNORE_INDEX, self.family.eos_token_id, labels)
        inputs = torch.cat([prompts, written[:, prompts.shape[1] - 1 : -1]], 1)
        tokens = Tokens(inputs, labels)
        full = Tokens(full_ids(inputs, self.family), labels)
        logits = teacher.family.logits(teacher.model, audio, full, tokens.labelled())
        if self.family.vocabulary is not None:
            logits = logits[:, self.family.vocabulary.ids.to(logits.device)]
        counts = torch.tensor([len(ids) for ids in said], device=states.device)
        own = replace(
            batch,
            inputs=inputs,
            labels=labels,
            labelled=tokens.labelled(),
            utterance_index=torch.repeat_interleave(torch.arange(len(said), device=states.device), counts),
            label_counts=counts,
        )
        return own, SoftTargets.full(logits, 1.0)

    def _prompts(self, batch: Batch) -> Tensor:
        """The forced first tokens, all but the last of which have no label. -> int64 [utterances, prompt]"""
        first = int((batch.labels[0] != IGNORE_INDEX).nonzero()[0, 0])
        return batch.inputs[:, : first + 1]

    def _replacer(self, audio: Tensor, prompts: Tensor) -> Callable[[Tensor, torch.Generator], Tensor]:
        """A function that takes the tokens proposed last [utterances] and returns those to be used."""
        incremental_decoder = self.teacher.family.incremental_decoder(self.teacher.model, audio)
        given = [full_ids(prompts, self.family)]

        def stand(proposed: Tensor, generator: torch.Generator) -> Tensor:
            logits = incremental_decoder(given[0])
            if self.family.vocabulary is not None:
                logits = logits[:, self.family.vocabulary.ids.to(logits.device)]
            likely = logits.topk(min(self.settings.top_k, logits.shape[-1]), -1).indices
            fine = (likely == proposed[:, None]).any(-1)
            own = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
            standing = torch.where(fine, proposed, own)
            given[0] = full_ids(standing[:, None], self.family)
            return standing

        return stand


def sample(
    family: Family,
    model: nn.Module,
    states: Tensor,
    attention_mask: Tensor,
    prompts: Tensor,
    limits: Sequence[int],
    temperature: float,
    generator: torch.Generator,
    replaced: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> list[list[int]]:
    """Sample a transcript for each utterance, with its end token unless the limit comes first.

    For each token the decoder runs over the whole prefix: transcripts are short, a student's decoder is thin, and unlike
    transformers' cache this masks the padding that shorter clips of the batch have.

    Args:
        family: runs the student.
        model: the student.
        states: its encoder states [utterances, positions, width].
        attention_mask: positions each utterance has [utterances, positions].
        prompts: forced first tokens [utterances, prompt].
        limits: most tokens of each utterance.
        temperature: the softmax's temperature; 0 takes the likeliest token.
        generator: source of randomness, on the states' device.
        replaced: given the tokens proposed, returns those to be used.
    """
    written = prompts
    out: list[list[int]] = [[] for _ in limits]
    running = set(range(len(limits)))
    for step in range(max(limits)):
        last = torch.arange(1, len(limits) + 1, device=states.device) * written.shape[1] - 1
        logits = family.project(model, family.hidden(model, states, Tokens(written, written), last, attention_mask))
        logits[:, family.suppress_tokens] = -torch.inf
        if step == 0:
            logits[:, family.begin_suppress_tokens] = -torch.inf
        if temperature:
            tokens = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
        else:
            tokens = logits.argmax(-1)
        if replaced is not None:
            tokens = replaced(tokens, generator)
        written = torch.cat([written, tokens[:, None]], 1)
        for i, token in enumerate(tokens.tolist()):
            if i in running:
                out[i].append(token)
                if token == family.eos_token_id or len(out[i]) >= limits[i]:
                    running.discard(i)
        if not running:
            break
    return out


def on_policy_losses(
    states: Tensor,
    logits: Tensor,
    batch: Batch,
    targets: SoftTargets,
    objective: Objective,
    progress: StageProgress,
    size: StepSize,
) -> StepLosses:
    """An on-policy micro-batch's share of the step's loss: distillation alone. The arguments are those of `distill.step.losses.step_losses`.

    No weighting is involved: this micro-batch has neither task losses nor weights to log.
    """
    stage, utterances = objective.stage, len(batch.ids)
    zeros = states.new_zeros(utterances, dtype=torch.float32)
    matching = state_mse(states, batch.teacher_states, batch.teacher_state_lengths) if stage.encoder_matching else zeros
    divergence = objective.weighting.divergence(stage.divergence, progress.fraction)
    each = per_utterance(distillation(logits, targets, divergence, 1.0), batch.utterance_index, utterances)
    loss = (stage.encoder_matching * matching.sum() + each.sum()) / size.utterances
    if not batch.is_real:
        loss = loss * 0.0
    disagreements = (logits.detach().argmax(-1) != targets.logits.argmax(-1)).sum()
    unknown = nan_like(zeros)
    return StepLosses(
        loss, unknown, each.detach(), logged_matching(matching, stage), unknown, unknown, disagreements, len(batch.utterance_index),
        {}, on_policy=True,
    )  # fmt: skip
