"""Batches that hold a budget of seconds, not of clips, of clips of similar length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.corpus.utterance import Utterance

BUCKET_BATCHES = 8  # clips are sorted by length within a shuffled stretch of about this many batches


def seconds_batches(
    utterances: Sequence[Utterance], budget: float, margin: float, seed: Sequence[int]
) -> list[list[int]]:
    """Indices of each batch, in a random order that depends on the seed alone.

    A batch costs its clips times its longest (plus the margin), because shorter clips are padded; that product stays
    within the budget unless a single clip exceeds it.

    Args:
        utterances: the clips.
        budget: seconds of audio a batch, padding included.
        margin: seconds added to each clip.
        seed: any integers, for example (seed, stage, epoch).
    """
    generator = np.random.default_rng(list(seed))
    order = generator.permutation(len(utterances))
    mean = float(np.mean([u.seconds for u in utterances])) + margin
    stretch = max(1, round(BUCKET_BATCHES * budget / mean))
    batches: list[list[int]] = []
    for start in range(0, len(order), stretch):
        batch: list[int] = []
        for i in sorted(order[start : start + stretch], key=lambda i: (utterances[i].seconds, i)):
            if batch and (len(batch) + 1) * (utterances[i].seconds + margin) > budget:
                batches.append(batch)
                batch = []
            batch.append(int(i))
        batches.append(batch)
    return [batches[i] for i in generator.permutation(len(batches))]


def padding_share(utterances: Sequence[Utterance], batches: Sequence[Sequence[int]]) -> float:
    """Share of a batch plan's seconds that is padding to the longest clip of a batch."""
    padded = sum(len(batch) * max(utterances[i].seconds for i in batch) for batch in batches)
    return 1 - sum(utterances[i].seconds for batch in batches for i in batch) / padded
