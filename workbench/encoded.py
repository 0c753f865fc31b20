"""The states of a frozen encoder, computed once for every clip of a stage instead of in every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from workbench.audio import SAMPLE_RATE
from workbench.corpus import Utterance
from workbench.families.log_mel import positions_of
from workbench.families.protocol import Family
from workbench.files import check_free_space
from workbench.recipe import MarginRecipe
from workbench.store import Store, shards_of
from workbench.targets import TargetCache

BATCH_CLIPS = 4


@torch.no_grad()
def encode_clips(
    model: Any,
    family: Family,
    utterances: Sequence[Utterance],
    keys: Sequence[str],
    cache: TargetCache,
    store: Store,
    margin: MarginRecipe,
    seed: int,
    rank: int = 0,
    ranks: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the encoder states (fp16 [positions, width]) of the clips that the store lacks and that fall to this rank.

    Each clip keeps states of its own length and a margin of silence of its own, drawn from the seed and its key.

    Args:
        model: the student, on its device, under the autocast that training uses.
        family: its features.
        utterances: the clips.
        keys: their keys in the cache.
        cache: holds the decoded audio.
        store: where the states go.
        margin: range of the silence.
        seed: of the run.
        rank: number of this process.
        ranks: how many processes there are.
        progress: called with the number of clips finished since the last call.
    """
    device = next(model.parameters()).device
    # ties are broken by key, so that every run batches alike
    order = sorted(range(len(utterances)), key=lambda i: (utterances[i].seconds, keys[i]))[rank::ranks]
    mine = [keys[i] for i in order]
    shards = list(shards_of(mine, store))
    width = family.config.d_model
    needed = sum(utterances[order[j]].seconds + margin.longest for shard in shards for j in shard) * 50 * width * 2
    if shards:
        check_free_space(store.folder, int(needed), "the frozen encoder's states")
    for shard in shards:
        items = []
        for start in range(0, len(shard), BATCH_CLIPS):
            batch = [mine[j] for j in shard[start : start + BATCH_CLIPS]]
            waves = [(cache.read(key, states=False).wave.float() / 32767).numpy() for key in batch]
            kept = [
                positions_of(len(w) + round(_silence(key, margin, seed) * SAMPLE_RATE))
                for w, key in zip(waves, batch, strict=True)
            ]
            kept = [min(k, positions_of(round(family.window_seconds * SAMPLE_RATE))) for k in kept]
            states = family.encode(model, family.features(waves, max(kept) * 0.02, device))
            items += [({"key": key}, {"states": s[:k].half()}) for key, s, k in zip(batch, states, kept, strict=True)]
        store.write(rank, items)
        progress(len(shard))


def _silence(key: str, margin: MarginRecipe, seed: int) -> float:
    return float(np.random.default_rng([seed, int(key[:12], 16)]).uniform(margin.shortest, margin.longest))
