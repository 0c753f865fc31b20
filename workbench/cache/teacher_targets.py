"""The teacher's pass over the corpus, made once and kept on disk.

A clip's targets are what soft_targets.py keeps of the teacher's distribution at each label, by default the k largest logits and the
normalizer, the teacher's own task loss and, if a stage matches them, its encoder states on the frames that the student will see too.
Targets are keyed by teacher, audio, transcript and settings: a change of any makes new ones and nothing is ever invalidated by hand.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.cache.decoded_audio import AudioCache, prefetch_waves
from workbench.cache.tensor_shards import Item, ShardStore, missing_by_shard
from workbench.core.disk import check_free_space
from workbench.core.hashing import cache_folder, cache_key
from workbench.corpus import Utterance
from workbench.losses.criterion import Predictions, criterion_of
from workbench.losses.soft_targets import (
    StoredTargets,
    TargetKind,
    bytes_per_label,
    full_targets,
    sampled_targets,
    top_k_targets,
)
from workbench.models.protocol import IGNORE_INDEX, Family
from workbench.models.states import encode_waves

log = logging.getLogger("workbench")
FORMAT = 2  # raise when what is read of the shards changes
TENSORS = ("top_ids", "top_logits", "log_normalizer")


@dataclass(frozen=True)
class ClipTargets:
    """The teacher's targets for one clip."""

    # for top_k; soft_targets.py says what they are for the other kinds
    top_ids: Tensor  # int32 [labels, k]
    top_logits: Tensor  # fp32 [labels, k]
    log_normalizer: Tensor  # fp32 [labels]: logsumexp(logits / temperature)
    states: Tensor | None  # fp16 [positions, width]
    task_loss: float  # the teacher's own: mean cross-entropy of the labels, or CTC loss per token
    aligned: Tensor | None = None  # int32 [frames], of a CTC teacher: what it aligns to each frame, -1 if nothing


@dataclass(frozen=True)
class TargetSettings:
    """What targets depend on besides the clip."""

    teacher: str  # fingerprint of the checkpoint
    top_k: int
    temperature: float
    margin: float  # seconds of silence after the clip whose states are kept
    states: bool = True  # whether the encoder states are kept
    precision: str = "fp32"  # the precision that the teacher ran in
    # seconds of silence after a clip, for a teacher that reads clips at their own length
    trained_silence: float | None = None
    kind: TargetKind = "top_k"
    samples: int = 0  # tokens drawn from the rest, with kind `sampled`
    frames: bool | None = None  # a CTC teacher's: there are targets at each frame, not at each label

    def key(self, utterance: Utterance) -> str:
        """Key of a clip's targets."""
        return cache_key(utterance.identity(), 32)

    def folder(self) -> Path:
        """Where they are kept."""
        shared = {name: value for name, value in self.__dict__.items() if name not in ("kind", "samples")}
        if self.kind == "full":  # all logits, whatever is made of them
            del shared["top_k"], shared["temperature"]
        key = [FORMAT, *(value for value in shared.values() if value is not None)]
        # top_k was the only kind once, and keeps its key
        if self.kind != "top_k":
            key += [f"kind {self.kind}", f"samples {self.samples if self.kind == 'sampled' else None}"]
        return cache_folder("targets", key)


class TargetCache:
    """Targets on disk, read a clip at a time.

    If the states are not needed, targets that a run stored with states serve as well.
    """

    def __init__(self, settings: TargetSettings, folder: Path | None = None) -> None:
        self.settings = settings
        self.store = ShardStore(folder or settings.folder())
        richer = replace(settings, states=True)
        self.richer = None if folder or settings.states else ShardStore(richer.folder())

    def __contains__(self, key: str) -> bool:
        return key in self.store or (self.richer is not None and key in self.richer)

    def check(self, keys: Sequence[str], rank: int = 0, world_size: int = 1) -> None:
        """`ShardStore.check`, which all processes that fill the cache must call."""
        if self.richer is not None:  # another run filled it: only what is damaged is removed
            self.richer.drop_damaged(keys, rank, world_size)
        self.store.check(keys, rank, world_size)
        if self.richer is not None:
            self.richer.reload()

    def task_loss(self, key: str) -> float:
        """The teacher's own loss on a clip."""
        return float(self._store_of(key).index[key]["task_loss"])

    def _store_of(self, key: str) -> ShardStore:
        return self.richer if self.richer is not None and key not in self.store else self.store

    def read(self, key: str, states: bool = True) -> ClipTargets:
        """Read a clip's targets, the states only if wanted; raises UserError if its shard is damaged."""
        states = states and self.settings.states
        names = [*TENSORS, *(["states"] if states else []), *(["aligned"] if self.settings.frames else [])]
        found = dict(zip(names, self._store_of(key).read(key, names), strict=True))
        return ClipTargets(
            found["top_ids"],
            found["top_logits"],
            found["log_normalizer"],
            found.get("states"),
            self.task_loss(key),
            found.get("aligned"),
        )


def compute_targets(
    teacher: nn.Module | None,
    family: Family,
    utterances: Sequence[Utterance],
    cache: TargetCache,
    batch_clips: int = 1,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int], None] = lambda _: None,
    audio: AudioCache | None = None,
) -> None:
    """Compute what the cache lacks of the utterances that fall to this rank; each rank writes its own shards.

    Args:
        teacher: the model, on its device; None for empty targets, for a student that teaches itself.
        family: its features and tokens.
        utterances: the training set.
        cache: where the targets go.
        batch_clips: clips in one forward pass, of similar length so that few labels are padding.
        rank: number of this process.
        world_size: how many processes there are.
        progress: called with the number of clips finished since the last call.
        audio: cache for the audio that is decoded for the teacher.

    Raises:
        UserError: the disk cannot hold the targets, or a clip cannot be used.
    """
    settings, store = cache.settings, cache.store
    ordered = sorted(utterances, key=lambda u: (u.seconds, u.id))[rank::world_size]
    keys = [settings.key(u) for u in ordered]
    shards = list(missing_by_shard(keys, cache))
    numbers = [i for shard in shards for i in shard]
    missing = [ordered[i] for i in numbers]
    if not missing:
        return
    audio_keys = {} if audio is None else {i: audio.key(ordered[i]) for i in numbers}
    needed = estimated_bytes(missing, settings, family.width, family.vocabulary_size, family.positions)
    needed += 0 if audio is None else audio.missing_bytes(missing, list(audio_keys.values()))
    check_free_space(store.folder, needed, "the teacher's targets and the decoded audio")
    device = torch.device("cpu") if teacher is None else next(teacher.parameters()).device
    batches = [shard[i : i + batch_clips] for shard in shards for i in range(0, len(shard), batch_clips)]
    started, done = time.perf_counter(), 0
    items: list[tuple[Item, dict[str, Tensor]]] = []
    last_of_shard = {shard[-1] for shard in shards}
    heard: list[tuple[str, Wave]] = []
    for batch, waves in zip(batches, prefetch_waves([[ordered[i] for i in b] for b in batches]), strict=True):
        asked = [ordered[i] for i in batch]
        if teacher is None:
            clips = _unasked(family, asked, bool(settings.frames))
        else:
            clips = _teacher_pass(teacher, family, asked, waves, settings, device)
        for i, clip in zip(batch, clips, strict=True):
            tensors = {name: value for name, value in clip.__dict__.items() if isinstance(value, Tensor)}
            items.append(({"key": keys[i], "id": ordered[i].id, "task_loss": clip.task_loss}, tensors))
        if audio is not None:
            heard += zip((audio_keys[i] for i in batch), waves, strict=True)
        if batch[-1] in last_of_shard:
            store.write(rank, items)
            if audio is not None:
                audio.add(heard, rank)
            items, heard = [], []
        if not done and rank == 0:
            seconds = (time.perf_counter() - started) / len(batch) * len(missing)
            log.info("teacher's targets: %d clips per process, %.0f MB on disk, about %.1f min",
                     len(missing), needed / 1e6, seconds / 60)  # fmt: skip
        done += len(batch)
        progress(len(batch))


def _unasked(family: Family, batch: Sequence[Utterance], frames: bool) -> list[ClipTargets]:
    """Empty targets for the right number of labels."""
    tokens = family.tokens([u.text for u in batch], [u.language for u in batch])
    counts = (tokens.labels != IGNORE_INDEX).sum(1).tolist()
    return [
        ClipTargets(
            torch.empty(count, 0, dtype=torch.int32),
            torch.empty(count, 0),
            torch.zeros(count),
            None,
            math.nan,
            torch.full((count,), -1, dtype=torch.int32) if frames else None,
        )
        for count in counts
    ]


@torch.no_grad()
def _teacher_pass(
    teacher: nn.Module,
    family: Family,
    batch: Sequence[Utterance],
    waves: Sequence[Wave],
    settings: TargetSettings,
    device: torch.device,
) -> list[ClipTargets]:
    """One forward pass at the length that the teacher was trained on: 30 s, or the clip's own."""
    tokens = family.tokens([u.text for u in batch], [u.language for u in batch])
    on_device = tokens.to(device)
    seconds = family.input_seconds(waves)
    if settings.states:  # the student's states are compared with these, however little silence the teacher needs
        seconds = max(seconds, max(map(len, waves)) / SAMPLE_RATE + settings.margin)
    states, attention_mask = encode_waves(family, teacher, waves, seconds, device)
    predicted = family.predicted(on_device, attention_mask)
    logits = family.logits(teacher, states, on_device, attention_mask=attention_mask).float()  # [labels, vocabulary]
    counts, utterance_index = predicted.sum(1).tolist(), predicted.nonzero()[:, 0]
    criterion = criterion_of(family)
    labels = criterion.labels(logits, on_device.labels, predicted)
    losses = criterion.task(logits, Predictions(on_device.labels, labels, utterance_index))
    out = []
    pieces = zip(torch.split(logits, counts), torch.split(losses.cpu(), counts), strict=True)
    alignments = torch.split(labels.int().cpu(), counts)
    for i, (own, loss) in enumerate(pieces):
        # the seed is the clip's own, so that a cache holds the same tokens whoever computes it
        seed = int(settings.key(batch[i])[:12], 16)
        ids, values, log_normalizer = (kept.cpu() for kept in _kept(own, settings, seed))
        kept = family.positions(len(waves[i]) + round(settings.margin * SAMPLE_RATE))
        clip_states = states[i, :kept].half().cpu() if settings.states else None
        aligned = alignments[i] if settings.frames else None
        out.append(ClipTargets(ids, values, log_normalizer, clip_states, float(loss.mean()), aligned))
    return out


def _kept(logits: Tensor, settings: TargetSettings, seed: int) -> StoredTargets:
    if settings.kind == "full":
        return full_targets(logits)
    if settings.kind == "sampled":
        return sampled_targets(logits, settings.top_k, settings.samples, settings.temperature, seed)
    return top_k_targets(logits, settings.top_k, settings.temperature)


def estimated_bytes(
    utterances: Iterable[Utterance],
    settings: TargetSettings,
    width: int,
    vocabulary: int,
    positions_of: Callable[[int], int],
) -> int:
    """Size on disk: the targets of each frame or of each token at about 5 tokens per second, and the states if they are kept."""
    total = 0
    a_label = bytes_per_label(settings.kind, settings.top_k, settings.samples, vocabulary)
    for utterance in utterances:
        positions = positions_of(round((utterance.seconds + settings.margin) * SAMPLE_RATE))
        total += positions * width * 2 if settings.states else 0
        total += (positions if settings.frames else int(5 * utterance.seconds + 5)) * a_label
    return total
