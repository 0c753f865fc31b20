"""Writing a transcript token by token, greedily or with a beam, from a sequence-to-sequence model's encoder states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.models.whisper.forward.layers import decoder_of

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


class IncrementalDecoder:
    """The decoder run one or several tokens at a time, with a cache of the tokens before.

    Args:
        model: a Whisper.
        states: encoder states [utterances, positions, width].
    """

    def __init__(self, model: WhisperForConditionalGeneration, states: Tensor) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        self._model, self._states = model, states
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits after the last of the next tokens, in fp32. [utterances, tokens] -> [utterances, vocabulary]"""
        # by position: the cache was called past_key_values until transformers 5.24
        out = decoder_of(self._model)(tokens, None, self._states, self._cache, use_cache=True)
        logits: Tensor = self._model.proj_out(out.last_hidden_state[:, -1])
        return logits.float()

    def keep(self, rows: Tensor) -> None:
        """Continue with some of the utterances."""
        self._states = self._states[rows]
        self._cache.batch_select_indices(rows)


def greedy(
    model: WhisperForConditionalGeneration,
    states: Tensor,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    end: int,
    suppress_tokens: Sequence[int] = (),
    begin_suppress_tokens: Sequence[int] = (),
) -> list[list[int]]:
    """Decode greedily; token ids of each utterance. The arguments are those of `greedy_scored`."""
    return [
        ids for ids, _ in greedy_scored(model, states, prompts, limits, end, suppress_tokens, begin_suppress_tokens)
    ]


@torch.no_grad()
def greedy_scored(
    model: WhisperForConditionalGeneration,
    states: Tensor,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    end: int,
    suppress_tokens: Sequence[int] = (),
    begin_suppress_tokens: Sequence[int] = (),
) -> list[tuple[list[int], float]]:
    """Decode greedily in one batch, each utterance up to its limit of tokens.

    Args:
        model: a Whisper.
        states: encoder states [utterances, positions, width].
        prompts: forced first tokens, equally many for each utterance.
        limits: most tokens to write for each utterance.
        end: id that ends a transcript.
        suppress_tokens: ids never written.
        begin_suppress_tokens: ids suppressed for the first token only.

    Returns:
        Token ids of each utterance, without prompt and end, and the mean log-probability of what was written.
    """
    incremental_decoder = IncrementalDecoder(model, states)
    tokens = torch.tensor(prompts, device=states.device)
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # utterances that are still in the batch
    running = set(rows)
    totals, counts = [0.0] * len(prompts), [0] * len(prompts)
    for step in range(max(limits)):
        logits = incremental_decoder(tokens)  # [utterances, vocabulary]
        logits[:, list(suppress_tokens)] = -torch.inf
        if step == 0:
            logits[:, list(begin_suppress_tokens)] = -torch.inf
        best = logits.max(-1, keepdim=True)
        tokens = best.indices
        log_probabilities = (best.values[:, 0] - logits.logsumexp(-1)).tolist()
        for i, token, said in zip(rows, tokens[:, 0].tolist(), log_probabilities, strict=True):
            if i in running:
                totals[i] += said
                counts[i] += 1
                if token == end:
                    running.discard(i)
                else:
                    written[i].append(token)
                    if len(written[i]) >= limits[i]:
                        running.discard(i)
        if not running:
            break
        if 2 * len(running) <= len(rows):  # a few long ones, or one that loops: the finished ones are dropped
            kept = torch.tensor([row for row, i in enumerate(rows) if i in running], device=states.device)
            rows = [i for i in rows if i in running]
            tokens = tokens[kept]
            incremental_decoder.keep(kept)
    return [(ids, total / max(count, 1)) for ids, total, count in zip(written, totals, counts, strict=True)]


@torch.no_grad()
def beam_scored(
    model: WhisperForConditionalGeneration,
    states: Tensor,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    end: int,
    suppress_tokens: Sequence[int] = (),
    begin_suppress_tokens: Sequence[int] = (),
    beams: int = 5,
) -> list[tuple[list[int], float]]:
    """Decode with transformers' beam search; arguments and result as `greedy_scored`, with the number of beams."""
    from transformers import GenerationConfig, GenerationMixin
    from transformers.modeling_outputs import BaseModelOutput

    prompt = torch.tensor(prompts, device=states.device)
    settings = GenerationConfig(
        num_beams=beams,
        max_new_tokens=max(limits),
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=int(prompt[0, 0]),
        suppress_tokens=list(suppress_tokens) or None,
        begin_suppress_tokens=list(begin_suppress_tokens) or None,
        return_dict_in_generate=True,
        output_scores=True,
        length_penalty=1.0,
    )
    # Whisper's own generate() slices 30 s windows and rewrites prompts; here states and prompts are given
    found = GenerationMixin.generate(
        model,
        generation_config=settings,
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        decoder_input_ids=prompt,
    )
    out = []
    for row, score, limit in zip(found.sequences.tolist(), found.sequences_scores.tolist(), limits, strict=True):
        ids = row[prompt.shape[1] :]
        ids = ids[: ids.index(end)] if end in ids else ids
        out.append((ids[:limit], score))
    return out
