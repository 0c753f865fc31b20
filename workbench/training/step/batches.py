"""Clips and their targets as micro-batches of training steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from workbench.audio.augment import add_noise
from workbench.audio.decode import SAMPLE_RATE
from workbench.cache.decoded_audio import to_wave
from workbench.cache.encoder_cache import trailing_silence_of
from workbench.cache.labelled_dataset import LabelledDataset
from workbench.config.recipe import Recipe
from workbench.corpus.batching import StepPlan
from workbench.losses.criterion import Predictions
from workbench.losses.divergences import SampledTargets, SoftTargets
from workbench.losses.soft_targets import TargetKind
from workbench.models.protocol import IGNORE_INDEX, Family, Tokens
from workbench.training.step.frames import aligned_and_taught, at_frames

LABEL_BUCKET = 8  # labels are padded to a multiple of it, so that few shapes occur
BUCKET_SECONDS = 0.5  # that a compiled step's audio is padded to about a multiple of, in whole encoder positions


@dataclass(frozen=True)
class Batch:
    """One micro-batch. Labelled positions of all utterances are flattened, in order of utterance and position.

    Of a model with a CTC head, the labelled positions are the frames: it predicts at each one.
    """

    ids: list[str]
    waves: Tensor  # fp32 [utterances, samples], padded; empty where `encoded` replaces them
    inputs: Tensor  # int64 [utterances, tokens]
    labels: Tensor  # int64 [utterances, tokens]
    labelled: Tensor  # int64 [labels]: flat indices of the labelled positions in [utterances * tokens], or of frames
    utterance_index: Tensor  # int64 [labels]: utterance of each labelled position
    label_counts: Tensor  # int64 [utterances]: tokens that count in an average over tokens
    teacher_states: (
        Tensor  # fp32 [utterances, positions, width]: the teacher's, zero-padded; empty if no loss uses them
    )
    teacher_state_lengths: Tensor  # int64 [utterances]: positions of `states` that are not padding
    student_states: Tensor  # fp16 [utterances, positions, width]: the student's own, from its frozen encoder; or empty
    attention_mask: Tensor  # bool [utterances, positions]: encoder positions that a clip has, with its silence
    # what soft_targets.py keeps for `kind`; for `full` all logits relative to the largest, for `sampled` tokens, weights and entropy
    top_ids: Tensor  # int64 [teachers, labels, k], the likeliest first
    top_logits: Tensor  # fp32 [teachers, labels, k]; of `full` fp16 [teachers, labels, vocabulary]
    log_normalizer: Tensor  # fp32 [teachers, labels]; of `full` the largest logit
    teacher_loss: Tensor  # fp32 [teachers, utterances]
    seed: tuple[int, ...]  # for what is random in this micro-batch
    is_real: bool = True  # False: a placeholder on a process without a clip in this step, which counts for nothing
    kind: TargetKind = "top_k"  # of the targets
    # fp32 [utterances, samples]: the waves without noise; empty where no loss uses them
    clean_waves: Tensor = field(default_factory=lambda: torch.empty(0))
    temperature: float = 1.0  # temperature at which sampled targets were drawn, and at which the others are used
    samples: Tensor = field(default_factory=lambda: torch.empty(0))  # int64 [utterances]: of each clip in `waves`
    # int64 [utterances]: the same with the silence after it
    heard: Tensor = field(default_factory=lambda: torch.empty(0))
    # int64 [labels], of frames: what the first teacher aligns to each, -1 if nothing; empty where labels are predicted
    aligned: Tensor = field(default_factory=lambda: torch.empty(0))
    # bool [teachers, labels], of frames: which of them a teacher has targets for; empty: all
    taught: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def tokens(self) -> Tokens:
        """Decoder inputs and labels."""
        return Tokens(self.inputs, self.labels)

    def targets(self, teacher: int) -> SoftTargets | SampledTargets:
        """One teacher's distribution at each label."""
        ids, values, number = self.top_ids[teacher], self.top_logits[teacher], self.log_normalizer[teacher]
        if self.kind == "sampled":
            return SampledTargets(ids, values, number)
        if self.kind == "full":
            return SoftTargets.full(values.float() + number[:, None], self.temperature)
        return SoftTargets(ids, values, number)

    def flat_labels(self) -> Tensor:
        """The labels of all utterances in order; of frames, what is aligned to them. -> int64 [labels]"""
        return self.aligned if self.aligned.numel() else self.labels.flatten().index_select(0, self.labelled)

    def predictions(self) -> Predictions:
        """What the labelled positions are compared with."""
        return Predictions(self.labels, self.flat_labels(), self.utterance_index)

    def taught_by(self, teacher: int) -> Tensor | None:
        """Where a teacher has targets, bool [labels]; None: everywhere."""
        return self.taught[teacher] if self.taught.numel() else None

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to a device; from pinned memory the copies do not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by torch's DataLoader when it pins."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class MicroBatchPlan:
    """Which clips are batched together."""

    steps: Sequence[StepPlan]  # what to do, by the dataset's indices
    mine: Sequence[int]  # which micro-batches of each step this process does
    micro_batches: int  # how many a step has
    seed: tuple[int, ...]  # of the epoch
    teacher_states: bool  # whether the teacher's encoder states are needed
    clean: bool = False  # whether the waves are needed without noise too
    pooled: bool = False  # whether the student has half as many states as the teacher


class MicroBatches(Dataset[Batch]):
    """The micro-batches of some steps that fall to this process, in order.

    Args:
        dataset: the clips with their targets, and perhaps the student's own encoder states.
        family: gives the tokens.
        recipe: gives trailing silence and augmentation.
        plan: which clips are batched together.
    """

    def __init__(self, dataset: LabelledDataset, family: Family, recipe: Recipe, plan: MicroBatchPlan) -> None:
        self.dataset, self.family, self.recipe, self.plan = dataset, family, recipe, plan
        self.work = [(step, number) for step in plan.steps for number in plan.mine]

    def __len__(self) -> int:
        return len(self.work)

    def __getitem__(self, i: int) -> Batch:
        step, number = self.work[i]
        clips = step.micro_batch(number, self.plan.micro_batches)
        return self._collate(clips or step.clips[:1], (*self.plan.seed, step.number, number), bool(clips))

    def _collate(self, clips: Sequence[int], seed: tuple[int, ...], real: bool) -> Batch:
        dataset, encoded_by = self.dataset, self.dataset.encoded
        utterances = [dataset.utterances[i] for i in clips]
        first, *others = dataset.caches
        targets = [first.read(dataset.keys[i], self.plan.teacher_states) for i in clips]
        everyone = [targets, *([cache.read(dataset.keys[i], states=False) for i in clips] for cache in others)]
        tokens = self.family.tokens([u.text for u in utterances], [u.language for u in utterances])
        tokens = Tokens(_bucketed(tokens.inputs, self.family.eos_token_id), _bucketed(tokens.labels, IGNORE_INDEX))
        states = [t.states.float() for t in targets if t.states is not None]
        if self.plan.pooled:
            states = [self.family.pooled(row[None])[0] for row in states]
        waves = clean = encoded = samples = heard = torch.empty(0)
        if encoded_by is None:
            waves, clean, samples, heard = self._waves(clips, seed)
            lengths = [self.family.positions(count) for count in heard.tolist()]
        else:
            found = [encoded_by.read(dataset.keys[i], ["states"])[0] for i in clips]
            encoded, lengths = torch.nn.utils.rnn.pad_sequence(found, batch_first=True), [len(s) for s in found]
        attention_mask = torch.arange(self._padded(max(lengths)))[None] < torch.tensor(lengths)[:, None]
        predicted = self.family.predicted(tokens, attention_mask)
        aligned, taught = torch.empty(0), torch.empty(0)
        if self.family.objective == "ctc":
            frames = predicted.sum(1).tolist()
            everyone = [[at_frames(t, n) for t, n in zip(said, frames, strict=True)] for said in everyone]
            aligned, taught = aligned_and_taught(everyone)
        return Batch(
            ids=[u.id for u in utterances],
            waves=waves,
            inputs=tokens.inputs,
            labels=tokens.labels,
            labelled=predicted.flatten().nonzero()[:, 0],
            utterance_index=predicted.nonzero()[:, 0],
            label_counts=(tokens.labels != IGNORE_INDEX).sum(1).clamp(min=1),
            teacher_states=torch.nn.utils.rnn.pad_sequence(states, batch_first=True) if states else torch.empty(0),
            teacher_state_lengths=torch.tensor([len(s) for s in states]),
            student_states=encoded,
            attention_mask=attention_mask,
            top_ids=self._narrow(torch.stack([torch.cat([t.top_ids for t in said]) for said in everyone]).long()),
            top_logits=self._kept(torch.stack([torch.cat([t.top_logits for t in said]) for said in everyone])),
            log_normalizer=torch.stack([torch.cat([t.log_normalizer for t in said]) for said in everyone]),
            teacher_loss=torch.tensor([[t.task_loss for t in said] for said in everyone]),
            seed=seed,
            is_real=real,
            kind=self.recipe.targets.kind,
            temperature=self.recipe.targets.temperature,
            clean_waves=clean,
            samples=samples,
            heard=heard,
            aligned=aligned,
            taught=taught,
        )

    def _kept(self, values: Tensor) -> Tensor:
        """Of `full` targets, the logits of the tokens that a narrowed student has: the teacher's distribution over these.

        Our interpretation; the k largest logits and sampled tokens are all among the kept ones.
        """
        vocabulary = self.family.vocabulary
        return values if vocabulary is None or self.recipe.targets.kind != "full" else values[..., vocabulary.ids]

    def _narrow(self, ids: Tensor) -> Tensor:
        return ids if self.family.vocabulary is None else self.family.vocabulary.map_ids(ids)

    def _waves(self, clips: Sequence[int], seed: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Padded waves [utterances, samples], the same without noise if wanted, each clip's samples, and the same with its own silence."""
        window, heard = self.family.samples(self._window()), []
        found = [self.dataset.samples(i) for i in clips]
        for i, samples_of in zip(clips, found, strict=True):
            silence = round(
                SAMPLE_RATE * trailing_silence_of(self.dataset.keys[i], self.recipe.trailing_silence, self.plan.seed)
            )
            heard.append(min(len(samples_of) + silence, window))
        samples = self.family.samples(self._padded(self.family.positions(max(heard))))
        waves = torch.zeros(len(clips), samples)
        lengths = torch.tensor([min(len(own), samples) for own in found])
        for row, own, length in zip(waves, found, lengths.tolist(), strict=True):
            row[:length] = to_wave(own[:length])
        noisy = add_noise(waves, lengths, self.recipe.augment, np.random.default_rng([*seed, 1]))
        return noisy, waves if self.plan.clean else torch.empty(0), lengths, torch.tensor(heard)

    def _window(self) -> int:
        """Encoder positions of the longest clip."""
        return self.family.positions(round(self.family.window_seconds * SAMPLE_RATE))

    def _padded(self, positions: int) -> int:
        """Positions that a micro-batch is padded to: few different ones for a compiled step."""
        if self.recipe.compile and self.dataset.encoded is None:
            bucket = max(1, round(BUCKET_SECONDS * SAMPLE_RATE / self.family.samples_per_position))
            return min(-(-positions // bucket) * bucket, self._window())
        return positions


def _bucketed(tokens: Tensor, filler: int) -> Tensor:
    """Pad to a multiple of LABEL_BUCKET tokens. [utterances, tokens]"""
    return torch.nn.functional.pad(tokens, (0, -tokens.shape[1] % LABEL_BUCKET), value=filler)
