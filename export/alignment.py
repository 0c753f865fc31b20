"""Which of a decoder's cross-attention heads follow the speech: word times are read off them.

A student has other layers than its teacher, so the teacher's list of alignment heads does not hold. Heads are chosen by how
monotonically they look, on clips whose text is known (our interpretation; Whisper's were chosen by hand and by time-stamped speech).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from export.edge.words import path, sharpened
from workbench.corpus import Utterance, open_corpus
from workbench.families.whisper import Whisper, encode

CLIPS = 24  # that heads are chosen on
MOST = 6
LEAST_SCORE = 0.3  # below which a head tells nothing
NEAR = 10  # positions on both sides of the path that count as on it
FEWEST_TOKENS = 4  # of a clip that can show an order


def alignment_clips(corpus: str) -> list[Utterance]:
    """Clips to choose heads on, of a corpus's training split."""
    return open_corpus(corpus, "train", CLIPS)


@torch.no_grad()
def choose_heads(
    model: Any, family: Whisper, utterances: Sequence[Utterance], margin_seconds: float
) -> list[list[int]]:
    """Heads that follow the speech, as [layer, head], the best first; none if no head does.

    Args:
        model: a WhisperForConditionalGeneration whose attention is eager.
        family: its features and tokens.
        utterances: clips with their texts.
        margin_seconds: silence after a clip that the model expects.
    """
    scores: list[Any] = []
    for utterance in utterances:
        tokens = family.tokens([utterance.text], [utterance.language])
        rows = tokens.labelled()
        if len(rows) <= FEWEST_TOKENS:
            continue
        states = encode(model, family.features([utterance.wave()], utterance.seconds + margin_seconds))
        looked = model.model.decoder(
            input_ids=tokens.inputs, encoder_hidden_states=states, output_attentions=True, use_cache=False
        ).cross_attentions
        heard = max(2, round(states.shape[1] * utterance.seconds / (utterance.seconds + margin_seconds)))
        each = torch.stack(
            [layer[0][:, rows, :heard] for layer in looked]
        ).numpy()  # [layers, heads, tokens, positions]
        scores.append([[following(head) for head in layer] for layer in each])
    if not scores:
        return []
    mean = np.mean(scores, axis=0)  # [layers, heads]
    best = np.dstack(np.unravel_index(np.argsort(-mean, axis=None), mean.shape))[0][:MOST]
    return [[int(layer), int(head)] for layer, head in best if mean[layer, head] >= LEAST_SCORE]


def following(attention: Any) -> float:
    """How well a head follows the speech, from 0 to 1: it looks later for later tokens, and near a monotone path.

    attention: [tokens, positions], rows adding up to 1 at most.
    """
    places = np.arange(attention.shape[1])
    looked = attention @ places / np.maximum(attention.sum(1), 1e-9)
    if looked.std() < 1e-6:
        return 0.0
    order = float(np.corrcoef(looked, np.arange(len(looked)))[0, 1])
    starts = path(-sharpened(attention))
    middles = (starts + np.append(starts[1:], attention.shape[1])) / 2
    near = np.abs(places[None] - middles[:, None]) <= NEAR
    return max(0.0, order) * float((attention * near).sum(1).mean())
