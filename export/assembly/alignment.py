"""Which of a decoder's cross-attention heads follow the speech: word times are computed from them.

A student has other layers than its teacher, so the teacher's list of alignment heads does not apply. Heads are chosen on clips that are
joined with pauses between them: where each one begins and ends is then known (our interpretation; docs/decisions/0016-word-times.md).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from export.assembly.detector import silero_data
from export.edge.bundle.content import Alignment
from export.edge.words import token_times
from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.corpus import Utterance, scored_clips
from workbench.labelling.segmentation import PAD_SECONDS, VoiceActivityDetector
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.passes import encode
from workbench.models.whisper.loading.tokens import label_ids

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

log = logging.getLogger("workbench")
CLIPS = 60  # clips that are examined to find those that are short and without a pause
JOINED = 3  # clips in a recording
SECONDS = (0.3, 2.5)  # of a clip's speech
PAUSES = (0.1, 0.6)  # seconds between clips
MOST = 6
LARGEST_ERROR = 0.5  # seconds, on average; a head with a larger error is useless


@dataclass(frozen=True)
class Recording:
    """Clips in a row, with their texts and times."""

    wave: Wave
    texts: list[str]
    times: list[tuple[float, float]]  # start and end of each clip, in seconds
    language: str


def alignment_clips(corpus: str) -> list[Utterance]:
    """Clips to choose heads on, of a corpus's training split."""
    return scored_clips(corpus, "train", CLIPS)


def recordings(utterances: Sequence[Utterance], seed: int = 0) -> list[Recording]:
    """Join clips three by three, without the silence around them and with random pauses between them.

    Raises:
        UserError: silero-vad is not installed.
    """
    finder, random = VoiceActivityDetector(), np.random.default_rng(seed)
    short: list[tuple[Wave, Utterance]] = []
    for utterance in utterances:
        wave = utterance.wave()
        pieces = finder.pieces(wave, utterance.seconds + 1)
        if len(pieces) == 1 and SECONDS[0] < pieces[0].end - pieces[0].start - 2 * PAD_SECONDS < SECONDS[1]:
            begin, end = (
                round(SAMPLE_RATE * at) for at in (pieces[0].start + PAD_SECONDS, pieces[0].end - PAD_SECONDS)
            )
            short.append((wave[begin:end], utterance))
    found = []
    for i in range(0, len(short) - JOINED + 1, JOINED):
        parts: list[Wave] = []
        times, at = [], 0
        for wave, _ in short[i : i + JOINED]:
            pause = np.zeros(int(SAMPLE_RATE * random.uniform(*PAUSES)), np.float32)
            times.append((at / SAMPLE_RATE, (at + len(wave)) / SAMPLE_RATE))
            parts += [wave, pause]
            at += len(wave) + len(pause)
        texts = [u.text for _, u in short[i : i + JOINED]]
        found.append(Recording(np.concatenate(parts), texts, times, short[i][1].language))
    return found


def find_alignment(
    model: WhisperForConditionalGeneration, family: Whisper, utterances: Sequence[Utterance], silence: float
) -> Alignment:
    """Heads that word times are computed from, and their mean error on the clips that they were chosen on.

    Without clips, or where silero-vad is not installed, they are those that the checkpoint names.

    Args:
        model: a WhisperForConditionalGeneration; its attention is eager afterwards if clips were read.
        family: its features and tokens.
        utterances: clips with their texts.
        silence: as for `choose_heads`.
    """
    named = [list(pair) for pair in getattr(family.generation, "alignment_heads", None) or []]
    unchecked: Alignment = {"heads": named, "error_seconds": None}
    if not utterances:
        return unchecked
    if silero_data() is None:
        log.warning(
            "silero-vad is not installed: word times are computed from the heads that the checkpoint names, unchecked"
        )
        return unchecked
    model.set_attn_implementation("eager")  # others do not return attention weights
    heads, error = choose_heads(model, family, recordings(utterances), silence)
    said = f"{len(heads)} heads, {error:.2f} s off on average" if heads else "no head follows the speech"
    log.info("word timestamps: %s", said)
    return {"heads": heads, "error_seconds": error}


@torch.no_grad()
def choose_heads(
    model: WhisperForConditionalGeneration, family: Whisper, joined: Sequence[Recording], silence: float
) -> tuple[list[list[int]], float | None]:
    """Heads that locate best where clips begin and end.

    Args:
        model: a WhisperForConditionalGeneration whose attention is eager.
        family: its features and tokens.
        joined: clips in a row, as `recordings` gives them.
        silence: seconds after a recording that the model expects; its whole window for one that reads 30 s.

    Returns:
        The heads as [layer, head], the best first, none if no head follows; and the mean error of their mean in seconds.
    """
    seen = []
    for one in joined:
        rows = _first_rows(family, one)
        if (attention := _attention(model, family, one, rows[-1], silence)) is not None:
            seen.append((attention, rows, one))
    if not seen:
        return [], None
    layers, heads = seen[0][0].shape[:2]
    errors = {
        (layer, head): _error([(attention[layer, head], rows, one) for attention, rows, one in seen])
        for layer in range(layers)
        for head in range(heads)
    }
    best = sorted((head for head, error in errors.items() if error <= LARGEST_ERROR), key=lambda head: errors[head])
    chosen = [list(head) for head in best[:MOST]]
    if not chosen:
        return [], None
    together = [(np.mean([attention[at, head] for at, head in chosen], 0), rows, one) for attention, rows, one in seen]
    return chosen, round(_error(together), 3)


def _attention(
    model: WhisperForConditionalGeneration, family: Whisper, one: Recording, count: int, silence: float
) -> npt.NDArray[np.float32] | None:
    """Attention of every head before each of `count` tokens and before the end, with the decoder run on the text.

    -> [layers, heads, tokens + 1, positions]; None where the joined text has not that many tokens
    """
    seconds = len(one.wave) / SAMPLE_RATE
    tokens = family.tokens([" ".join(text.strip() for text in one.texts)], [one.language])
    rows = tokens.labelled()
    if len(rows) != count + 1:
        return None
    heard = min(seconds + silence, family.window_seconds)
    states = encode(model, family.features([one.wave], heard))
    attentions = model.model.decoder(
        input_ids=tokens.inputs, encoder_hidden_states=states, output_attentions=True, use_cache=False
    ).cross_attentions
    positions = max(2, round(states.shape[1] * seconds / heard))
    return torch.stack([layer[0][:, rows, :positions] for layer in attentions]).numpy()


def _first_rows(family: Whisper, one: Recording) -> list[int]:
    """Index of each clip's first token, and of the end."""
    counts = [len(label_ids(family.tokenizer, text.strip())) for text in one.texts]
    return [0, *np.cumsum(counts).tolist()]


def _error(seen: Sequence[tuple[npt.NDArray[np.float32], list[int], Recording]]) -> float:
    """Mean error in seconds of the clips' starts, all but the first, and of their ends."""
    found = []
    for attention, rows, one in seen:
        begins, ends = token_times(attention, len(one.wave) / SAMPLE_RATE)
        for k, (begin, end) in enumerate(one.times):
            found += [abs(begins[rows[k]] - begin)] * (k > 0) + [abs(ends[rows[k + 1] - 1] - end)]
    return float(np.mean(found))
