"""Forward passes of a Whisper model: its encoder at any length up to 30 s, its decoder along given tokens.

transformers' encoder accepts exactly 3,000 frames. Here its layers run on as many frames as the clip has, with the
first positions of the embedding (length-adaptive distillation: our interpretation, docs/decisions/0003).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.machine.distributed import is_sharded
from workbench.models.protocol import LayerOutputs, Tokens
from workbench.models.whisper.forward.convolution import convolve
from workbench.models.whisper.forward.layer_outputs import LayerTap
from workbench.models.whisper.forward.layers import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    Layer,
    Layers,
    decoder_of,
    encoder_of,
)
from workbench.models.whisper.forward.packed import (
    PackedTokens,
    packed_decoder_layer,
    run_layer,
    run_packed,
    uses_dropout,
)
from workbench.models.whisper.forward.pooling import pool_after, pooled, pooled_mask
from workbench.models.whisper.forward.tied import TiedMatrix

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


def encode(
    model: WhisperForConditionalGeneration,
    features: Tensor,
    attention_mask: Tensor | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Run the encoder on any number of frames up to 3,000.

    Args:
        model: a Whisper.
        features: [clips, mels, frames].
        attention_mask: which positions a clip has, bool [clips, frames / 2]; the others are padding, and no clip attends to them.
        checkpointing: compute a layer's activations again in the backward pass instead of keeping them.

    Returns:
        States [clips, frames / 2, width], undefined at padding; half as many where the model pools them.
    """
    encoder, pools = encoder_of(model), pool_after(model.config)
    hidden = _embedded(encoder, features)
    if pools:
        hidden = _run_layers(encoder.layers[:pools], hidden, attention_mask, checkpointing)
        hidden, attention_mask = (
            pooled(hidden, attention_mask),
            None if attention_mask is None else pooled_mask(attention_mask),
        )
    states: Tensor = encoder.layer_norm(_run_layers(encoder.layers[pools:], hidden, attention_mask, checkpointing))
    return states


def encode_with_early(
    model: WhisperForConditionalGeneration,
    features: Tensor,
    layer: int,
    attention_mask: Tensor | None = None,
    checkpointing: bool = False,
) -> tuple[Tensor, Tensor]:
    """`encode` for an encoder that does not pool, and in the same pass the states after an earlier layer under the same last norm.

    Args:
        model: a Whisper.
        features: [clips, mels, frames].
        layer: number of the earlier layer, counted from 0.
        attention_mask: which positions a clip has, bool [clips, frames / 2].
        checkpointing: compute a layer's activations again in the backward pass instead of keeping them.

    Returns:
        States and earlier states, both [clips, frames / 2, width], undefined at padding.
    """
    encoder = encoder_of(model)
    early = _run_layers(encoder.layers[: layer + 1], _embedded(encoder, features), attention_mask, checkpointing)
    last = _run_layers(encoder.layers[layer + 1 :], early, attention_mask, checkpointing)
    return encoder.layer_norm(last), encoder.layer_norm(early)


def _embedded(encoder: Encoder, features: Tensor) -> Tensor:
    """What the first layer reads. [clips, mels, frames] -> [clips, positions, width]"""
    hidden = F.gelu(convolve(encoder.conv1, features))
    hidden = F.gelu(convolve(encoder.conv2, hidden)).transpose(1, 2)
    return hidden + encoder.embed_positions.weight[: hidden.shape[1]]


def _run_layers(
    layers: Layers[EncoderLayer], hidden: Tensor, attention_mask: Tensor | None, checkpointing: bool
) -> Tensor:
    if attention_mask is not None and _packs(layers, hidden):
        return run_packed(layers, hidden, attention_mask, checkpointing)
    mask = None if attention_mask is None else attention_mask[:, None, None, :].expand(-1, 1, hidden.shape[1], -1)
    for layer in layers:
        hidden = run_layer(_stock_layer, checkpointing, layer, hidden, mask)
    return hidden


def _packs(layers: Layers[Layer], hidden: Tensor) -> bool:
    """Whether clips are computed without their padding: on a CPU, unless FSDP is used, which hooks into a layer's own call."""
    if hidden.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not any(is_sharded(layer) for layer in layers[:1])


def _stock_layer(layer: Layer, hidden: Tensor, *given: Tensor | None) -> Tensor:
    """A layer of transformers'."""
    return layer(hidden, *given)


def decoder_logits(
    model: WhisperForConditionalGeneration,
    states: Tensor,
    tokens: Tokens,
    labelled: Tensor | None = None,
    attention_mask: Tensor | None = None,
    checkpointing: bool = False,
    early_layer: int | None = None,
    tap: LayerTap | None = None,
) -> Tensor:
    """Teacher-forced logits at the labelled positions only, in order of utterance and position.

    Gathering before the projection saves the product with the vocabulary at prompt and padding positions.

    Args:
        model: a Whisper.
        states: encoder states [utterances, positions, width].
        tokens: inputs and labels [utterances, tokens].
        labelled: flat indices of the labelled positions [labels], if they are known already.
        attention_mask: which states are there to be attended to, bool [utterances, positions], or as many as the encoder had before it
            pooled them; all by default.
        checkpointing: compute a layer's activations again in the backward pass instead of keeping them.
        early_layer: also the logits after this decoder layer, under the same norm and projection.
        tap: collects what some layers compute.

    Returns:
        Logits [labels, vocabulary]; with `early_layer` [2 * labels, vocabulary], the early ones last.
    """
    weight = decoder_of(model).embed_tokens.weight
    # torch.compile cannot trace the hand-over between the two
    tied = weight is model.proj_out.weight and weight.requires_grad and not torch.compiler.is_compiling()
    matrix = TiedMatrix(weight, decoder_of(model).embed_tokens.padding_idx) if tied else None
    chosen, early_chosen = decoder_hidden(
        model, states, tokens, labelled, attention_mask, checkpointing, matrix, early_layer, tap
    )
    if early_chosen is not None:
        chosen = torch.cat([chosen, early_chosen])
    logits: Tensor = matrix.project(chosen) if matrix else model.proj_out(chosen)
    return logits


def decoder_hidden(
    model: WhisperForConditionalGeneration,
    states: Tensor,
    tokens: Tokens,
    labelled: Tensor | None = None,
    attention_mask: Tensor | None = None,
    checkpointing: bool = False,
    matrix: TiedMatrix | None = None,
    early_layer: int | None = None,
    tap: LayerTap | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Input of the output projection at the labelled positions, and the same after an early layer; see `decoder_logits`."""
    decoder = decoder_of(model)
    if attention_mask is not None and attention_mask.shape[1] != states.shape[1]:
        attention_mask = pooled_mask(attention_mask)  # the encoder has halved them
    hidden = matrix.embed(tokens.inputs) if matrix else decoder.embed_tokens(tokens.inputs)
    hidden = hidden + decoder.embed_positions.weight[: tokens.inputs.shape[1]]
    places = tokens.labelled() if labelled is None else labelled
    given: tuple[object, ...]
    call: Callable[..., Tensor]
    if _packs(decoder.layers, hidden) and not uses_dropout(decoder.layers):
        packed = PackedTokens.of(tokens.labels, states, attention_mask)
        rows, places, given, call = packed.rows(hidden), packed.places(places), (packed,), packed_decoder_layer
    else:
        mask = (
            None
            if attention_mask is None
            else attention_mask[:, None, None, :].expand(-1, 1, tokens.inputs.shape[1], -1)
        )
        # without a mask of its own, self-attention is causal
        rows, given, call = hidden, (None, states, mask), _stock_layer
    early_rows = None
    for number, layer in enumerate(decoder.layers):
        if tap is None or number not in tap.layers:
            rows = run_layer(call, checkpointing, layer, rows, *given)
        else:  # never checkpointed: what the tap keeps would be computed twice
            rows = tap.run(number, layer, partial(call, layer, rows, *given), places)
        if number == early_layer:
            early_rows = _norm_at(decoder, rows, places)
    return _norm_at(decoder, rows, places), early_rows


def _norm_at(decoder: Decoder, rows: Tensor, places: Tensor) -> Tensor:
    """The decoder's last norm, at some positions. [..., width] -> [places, width]"""
    chosen: Tensor = decoder.layer_norm(rows.flatten(0, -2).index_select(0, places))
    return chosen


def decoder_logits_and_layers(
    model: WhisperForConditionalGeneration,
    states: Tensor,
    tokens: Tokens,
    layers: Sequence[int],
    attention: bool,
    labelled: Tensor | None = None,
    attention_mask: Tensor | None = None,
    checkpointing: bool = False,
) -> tuple[Tensor, LayerOutputs]:
    """`decoder_logits`, and in the same pass what some layers compute; see `Family.logits_and_layers`."""
    tap = LayerTap(layers, attention)
    labelled = tokens.labelled() if labelled is None else labelled
    logits = decoder_logits(model, states, tokens, labelled, attention_mask, checkpointing, tap=tap)
    if attention_mask is not None and attention_mask.shape[1] != states.shape[1]:
        attention_mask = pooled_mask(attention_mask)
    every = list(decoder_of(model).layers)
    return logits, tap.outputs(every, states, attention_mask, labelled, tokens.inputs.shape[1])


@contextmanager
def with_dropout(layers: Layers[DecoderLayer], rate: float) -> Iterator[None]:
    """Temporarily run layers with dropout; all of them are in eval mode before and after."""
    kept = [layer.dropout for layer in layers]
    try:
        for layer in layers:
            layer.dropout = rate
            layer.train()
        yield
    finally:
        for layer, before in zip(layers, kept, strict=True):
            layer.dropout = before
            layer.eval()
