"""Encoder layers on clips of different length without their padding, for the CPU.

Everything but attention works position by position, so the positions of all clips lie in one row and padding costs nothing;
attention goes clip by clip. A GPU would rather mask the padding than start a kernel for each clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run_packed(layers: Iterable[Any], hidden: Tensor, heard: Tensor, checkpointing: bool) -> Tensor:
    """Run Whisper's encoder layers on the positions that clips have.

    Args:
        layers: WhisperEncoderLayers.
        hidden: [clips, positions, width].
        heard: positions that are there, bool [clips, positions], from each clip's start.
        checkpointing: compute a layer's activations again in the backward pass instead of keeping them.

    Returns:
        [clips, positions, width], zero at padding.
    """
    places = heard.flatten().nonzero()[:, 0]
    lengths = heard.sum(1).tolist()
    row = hidden.flatten(0, 1).index_select(0, places)  # [positions of all clips, width]
    for layer in layers:
        row = run_layer(_packed_layer, checkpointing, layer, row, lengths)
    out = row.new_zeros(hidden.shape[0] * hidden.shape[1], hidden.shape[2]).index_copy(0, places, row)
    return out.view(hidden.shape)


def run_layer(call: Callable[..., Tensor], checkpointing: bool, *given: Any) -> Tensor:
    """Call a layer; with `checkpointing`, its activations are computed again in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        out: Tensor = checkpoint(call, *given, use_reentrant=False)
        return out
    return call(*given)


def _packed_layer(layer: Any, row: Tensor, lengths: Sequence[int]) -> Tensor:
    """One layer, as transformers' WhisperEncoderLayer without dropout. [positions of all clips, width] -> the same"""
    attention = layer.self_attn
    normed = layer.self_attn_layer_norm(row)
    heads = (-1, attention.num_heads, attention.head_dim)
    query, key, value = (
        projected.view(heads).transpose(0, 1)  # [heads, positions of all clips, head width]
        for projected in (
            attention.q_proj(normed) * attention.scaling,
            attention.k_proj(normed),
            attention.v_proj(normed),
        )
    )
    pieces = zip(*(part.split(list(lengths), 1) for part in (query, key, value)), strict=True)
    attended = [F.scaled_dot_product_attention(q[None], k[None], v[None], scale=1.0)[0] for q, k, v in pieces]
    row = row + attention.out_proj(torch.cat(attended, 1).transpose(0, 1).flatten(1))
    hidden = layer.activation_fn(layer.fc1(layer.final_layer_norm(row)))
    out: Tensor = row + layer.fc2(hidden)
    return out
