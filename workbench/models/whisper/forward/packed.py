"""Whisper's layers on clips of different length without their padding, for the CPU.

Everything but attention works position by position, so the positions of all clips lie in one row and padding costs nothing;
attention goes clip by clip. A GPU would rather mask the padding than start a kernel for each clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from workbench.models.whisper.forward.layers import Attention, DecoderAttention, DecoderLayer, EncoderLayer, Layer


def run_packed(layers: Iterable[EncoderLayer], hidden: Tensor, attention_mask: Tensor, checkpointing: bool) -> Tensor:
    """Run Whisper's encoder layers on the clips' positions without padding.

    Args:
        layers: WhisperEncoderLayers.
        hidden: [clips, positions, width].
        attention_mask: positions that are there, bool [clips, positions], from each clip's start.
        checkpointing: compute a layer's activations again in the backward pass instead of keeping them.

    Returns:
        [clips, positions, width], zero at padding.
    """
    places = attention_mask.flatten().nonzero()[:, 0]
    lengths = attention_mask.sum(1).tolist()
    row = hidden.flatten(0, 1).index_select(0, places)  # [positions of all clips, width]
    for layer in layers:
        row = run_layer(_packed_layer, checkpointing, layer, row, lengths)
    out = row.new_zeros(hidden.shape[0] * hidden.shape[1], hidden.shape[2]).index_copy(0, places, row)
    return out.view(hidden.shape)


def run_layer(call: Callable[..., Tensor], checkpointing: bool, *given: object) -> Tensor:
    """Call a layer; with `checkpointing`, its activations are computed again in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        out: Tensor = checkpoint(call, *given, use_reentrant=False)
        return out
    return call(*given)


def _packed_layer(layer: EncoderLayer, row: Tensor, lengths: Sequence[int]) -> Tensor:
    """One layer, as transformers' WhisperEncoderLayer without dropout. [positions of all clips, width] -> the same"""
    return _fed_forward(layer, row + _self_attention(layer, row, lengths, causal=False))


@dataclass(frozen=True)
class PackedTokens:
    """The decoder's side of a batch: the tokens that each clip has, and the encoder states that it attends to."""

    lengths: list[int]
    kept: Tensor  # int64 [tokens of all clips]: their flat places in the padded batch
    states: list[Tensor]  # of each clip [positions, width]

    @classmethod
    def of(cls, labels: Tensor, states: Tensor, attention_mask: Tensor | None) -> PackedTokens:
        """Leave out the tokens after a clip's last label, and the states beyond its audio.

        Args:
            labels: int64 [clips, tokens], negative where there is none.
            states: [clips, positions, width].
            attention_mask: which positions are there, bool [clips, positions], from each clip's start; all by default.
        """
        numbers = torch.arange(1, labels.shape[1] + 1)
        lengths = ((labels >= 0) * numbers).amax(1).clamp(min=1)  # a clip without labels only fills the batch
        kept = (numbers <= lengths[:, None]).flatten().nonzero()[:, 0]
        heights = [states.shape[1]] * len(states) if attention_mask is None else attention_mask.sum(1).tolist()
        return cls(lengths.tolist(), kept, [s[:height] for s, height in zip(states, heights, strict=True)])

    def rows(self, hidden: Tensor) -> Tensor:
        """[clips, tokens, width] -> [tokens of all clips, width]"""
        return hidden.flatten(0, 1).index_select(0, self.kept)

    def places(self, flat: Tensor) -> Tensor:
        """Flat places in the padded batch -> rows."""
        return torch.searchsorted(self.kept, flat)


def uses_dropout(layers: Iterable[DecoderLayer]) -> bool:
    """Whether any layer is being trained with dropout, which the packed ones do not implement."""
    rates = (
        (x.dropout, x.activation_dropout, x.self_attn.dropout, x.encoder_attn.dropout) for x in layers if x.training
    )
    return any(rate > 0 for each in rates for rate in each)


def packed_decoder_layer(layer: DecoderLayer, row: Tensor, tokens: PackedTokens) -> Tensor:
    """One layer, as transformers' WhisperDecoderLayer without dropout. [tokens of all clips, width] -> the same"""
    row = row + _self_attention(layer, row, tokens.lengths, causal=True)
    row = row + _cross_attention(layer.encoder_attn, layer.encoder_attn_layer_norm(row), tokens)
    return _fed_forward(layer, row)


def _self_attention(layer: Layer, row: Tensor, lengths: Sequence[int], causal: bool) -> Tensor:
    attention = layer.self_attn
    normed = layer.self_attn_layer_norm(row)
    query, key, value = (
        _by_head(attention, projected)
        for projected in (
            attention.q_proj(normed) * attention.scaling,
            attention.k_proj(normed),
            attention.v_proj(normed),
        )
    )
    pieces = zip(*(torch.split(part, list(lengths), 1) for part in (query, key, value)), strict=True)
    attended = [
        F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=causal, scale=1.0)[0] for q, k, v in pieces
    ]
    return _out(attention, torch.cat(attended, 1))


def _cross_attention(attention: DecoderAttention, normed: Tensor, tokens: PackedTokens) -> Tensor:
    """Attention of tokens to encoder states. normed: [tokens of all clips, width] -> the same

    Keys and values of all positions are the larger part of a shallow decoder's step. With fewer tokens than a head's width, it is cheaper
    to multiply the queries by the keys' weights, attend to the states directly, and multiply the result by the values' weights.
    """
    query = _by_head(attention, attention.q_proj(normed) * attention.scaling)  # [heads, tokens, head width]
    if len(normed) >= attention.head_dim * len(tokens.states):
        pieces = zip(torch.split(query, tokens.lengths, 1), tokens.states, strict=True)
        attended = []
        for q, states in pieces:
            key, value = (_by_head(attention, p(states)) for p in (attention.k_proj, attention.v_proj))
            attended.append(F.scaled_dot_product_attention(q[None], key[None], value[None], scale=1.0)[0])
        return _out(attention, torch.cat(attended, 1))
    heads, width = attention.num_heads, normed.shape[1]
    keys, values = (p.weight.view(heads, attention.head_dim, width) for p in (attention.k_proj, attention.v_proj))
    asking = torch.bmm(query, keys)  # [heads, tokens, width]
    found = []
    for ask, states in zip(torch.split(asking, tokens.lengths, 1), tokens.states, strict=True):
        shares = (ask.flatten(0, 1) @ states.t()).softmax(-1)  # [heads * tokens, positions]
        found.append((shares.to(states.dtype) @ states).view(heads, -1, width))
    bias = 0 if attention.v_proj.bias is None else attention.v_proj.bias.view(heads, 1, -1)  # shares sum to 1
    return _out(attention, torch.bmm(torch.cat(found, 1), values.transpose(1, 2)) + bias)


def _by_head(attention: Attention, projected: Tensor) -> Tensor:
    """[positions, width] -> [heads, positions, head width]"""
    return projected.view(-1, attention.num_heads, attention.head_dim).transpose(0, 1)


def _out(attention: Attention, attended: Tensor) -> Tensor:
    """[heads, positions, head width] -> [positions, width]"""
    out: Tensor = attention.out_proj(attended.transpose(0, 1).flatten(1))
    return out


def _fed_forward(layer: Layer, row: Tensor) -> Tensor:
    out: Tensor = row + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(row))))
    return out
