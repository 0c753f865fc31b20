"""The states of a frozen encoder, computed once for every clip of a stage instead of in every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from workbench.audio.decode import SAMPLE_RATE
from workbench.cache.decoded_audio import to_wave
from workbench.cache.labelled_dataset import LabelledDataset
from workbench.cache.tensor_shards import Item, ShardStore, missing_by_shard
from workbench.config.additions import QuantizationRecipe
from workbench.config.recipe import Recipe
from workbench.config.sections import TrailingSilenceRecipe
from workbench.core.disk import check_free_space
from workbench.core.hashing import cache_folder
from workbench.corpus import Utterance
from workbench.models.protocol import Family
from workbench.models.resolve import fingerprint, resolve_teacher

ENCODED_FORMAT = 1  # raise when what the store holds changes
CALIBRATION_CLIPS = 64  # on which the encoder's linear layers are factorized
BUCKET_SECONDS = 0.1  # lengths are rounded up to about a multiple of it, so that clips share them


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """How clips are read, and which of them this process reads."""

    margin: TrailingSilenceRecipe  # range of the silence after a clip
    seed: int  # of the run
    rank: int = 0  # number of this process
    world_size: int = 1  # how many there are


@torch.no_grad()
def encode_clips(
    model: nn.Module,
    family: Family,
    dataset: LabelledDataset,
    store: ShardStore,
    settings: EncodingSettings,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the encoder states (fp16 [positions, width]) of the clips that the store lacks and that fall to this rank.

    Each clip keeps states of its own length and a margin of silence of its own, drawn from the seed and its key.

    Args:
        model: the student, on its device, under the autocast that training uses.
        family: its features.
        dataset: the clips, with their decoded audio.
        store: where the states go.
        settings: silence, and this process's share.
        progress: called with the number of clips finished since the last call.
    """
    utterances, keys = dataset.utterances, dataset.keys
    margin, seed, rank, world_size = settings.margin, settings.seed, settings.rank, settings.world_size
    device = next(model.parameters()).device
    # ties are broken by key, so that every run batches alike
    order = sorted(range(len(utterances)), key=lambda i: (utterances[i].seconds, keys[i]))[rank::world_size]
    mine = [keys[i] for i in order]
    shards = list(missing_by_shard(mine, store))
    width = family.width
    needed = (
        sum(utterances[order[j]].seconds + margin.train_max for shard in shards for j in shard)
        * SAMPLE_RATE
        / family.samples_per_position
        * width
        * 2
    )
    longest = family.positions(round(family.window_seconds * SAMPLE_RATE))
    if shards:
        check_free_space(store.folder, int(needed), "the frozen encoder's states")
    for shard in shards:
        waves = {mine[j]: to_wave(dataset.samples(order[j])).numpy() for j in shard}
        # A state depends on all the silence its clip was read with, so only clips of one length are read together: the
        # result is then the same for any number of processes.
        groups: dict[int, list[str]] = {}
        bucket = max(1, round(BUCKET_SECONDS * SAMPLE_RATE / family.samples_per_position))
        for key, wave in waves.items():
            positions = family.positions(len(wave) + round(trailing_silence_of(key, margin, [seed]) * SAMPLE_RATE))
            groups.setdefault(min(-(-positions // bucket) * bucket, longest), []).append(key)
        items: list[tuple[Item, dict[str, Tensor]]] = []
        for positions, group in sorted(groups.items()):
            seconds = family.samples(positions) / SAMPLE_RATE
            features = torch.cat([family.features([waves[key]], seconds, device) for key in group])
            states = family.encode(model, features)
            items += [({"key": key}, {"states": s.half()}) for key, s in zip(group, states, strict=True)]
        store.write(rank, items)
        progress(len(shard))


@torch.no_grad()
def encode_full_window(
    model: nn.Module,
    family: Family,
    utterances: Sequence[Utterance],
    keys: Sequence[str],
    store: ShardStore,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a teacher's encoder states at its whole window (fp16 [positions, width]) of this rank's clips that the store lacks."""
    device = next(model.parameters()).device
    order = sorted(range(len(utterances)), key=lambda i: keys[i])[rank::world_size]
    mine = [keys[i] for i in order]
    shards = list(missing_by_shard(mine, store))
    window = family.positions(round(family.window_seconds * SAMPLE_RATE))
    check_free_space(store.folder, sum(map(len, shards)) * window * family.width * 2, "the teacher's states")
    for shard in shards:
        items: list[tuple[Item, dict[str, Tensor]]] = []
        for j in shard:
            features = family.features([utterances[order[j]].wave()], family.window_seconds, device)
            items.append(({"key": mine[j]}, {"states": family.encode(model, features)[0].half()}))
        store.write(rank, items)
        progress(len(shard))


def calibration_clips(
    recipe: Recipe, train: Sequence[Utterance], validation: Sequence[Utterance]
) -> Sequence[Utterance]:
    """Clips on which the encoder's linear layers are factorized for `student.encoder_low_rank_variance`; none where it is not set."""
    return [] if recipe.student.encoder_low_rank_variance is None else (train or validation)[:CALIBRATION_CLIPS]


def encoder_cache_folder(
    recipe: Recipe, what: str, calibration: Sequence[Utterance], quantization: QuantizationRecipe | None = None
) -> Path:
    """Where every run with the same initial encoder keeps its states.

    Args:
        recipe: the run's recipe.
        what: `trained` (random silence) or `evaluated`.
        calibration: the run's `calibration_clips`.
        quantization: what the stage rounds, and with it the encoder.
    """
    source = resolve_teacher(recipe.student.init_from or recipe.teacher)
    margin, layers = recipe.trailing_silence, recipe.student.encoder_layers
    key: list[object] = [
        ENCODED_FORMAT,
        what,
        fingerprint(source),
        str(layers),
        margin.train_min,
        margin.train_max,
        recipe.precision,
    ]
    # their defaults leave the key of older states as it was
    student = recipe.student
    # the second has the name that its recipe key had when such states were first kept
    named = (("pool_after", student.pool_after), ("encoder_variance", student.encoder_low_rank_variance))
    key += [f"{name} {value}" for name, value in named if value]
    if quantization is not None and quantization.encoder is not None:
        key += [f"quantization {quantization.encoder} {quantization.reduce_range}"]
    if calibration:
        key += [margin.inference, *([u.audio_sha256(), round(u.seconds, 3)] for u in calibration)]
    return cache_folder("encoded", [*key, recipe.seed if what == "trained" else None])


def trailing_silence_of(key: str, margin: TrailingSilenceRecipe, seed: Sequence[int]) -> float:
    """Seconds of silence after a clip, drawn from its key and the seed alone."""
    return float(np.random.default_rng([*seed, int(key[:12], 16)]).uniform(margin.train_min, margin.train_max))
