"""Building blocks of Whisper's layers, in operators every onnxruntime has; shared by the encoder's graph and two of the decoders'."""

from __future__ import annotations

import numpy as np

from export.graphs.writer import Writer
from workbench.models.whisper.forward.layers import Attention, Layer

MASKED_SCORE = -1e9  # so low that its exponential is zero


def split_heads(w: Writer, attention: Attention, x: str, turned: bool = False) -> str:
    """[batch, tokens, width] -> [batch, heads, tokens, head width]; if `turned`, with the last two axes swapped, as `attend` takes keys."""
    shape = w.integers(0, 0, int(attention.num_heads), int(attention.head_dim))
    return w.add("Transpose", w.add("Reshape", x, shape), perm=[0, 2, 3, 1] if turned else [0, 2, 1, 3])


def attend(w: Writer, attention: Attention, query: str, key: str, value: str, mask: str = "") -> str:
    """Attention before its output projection.

    Args:
        w: the graph.
        attention: a WhisperAttention, for its sizes.
        query: [batch, tokens, width].
        key: [batch, heads, head width, positions].
        value: [batch, heads, positions, head width].
        mask: added to the scores, of a shape that broadcasts to [batch, heads, tokens, positions].

    Returns:
        [batch, tokens, width].
    """
    heads, width = int(attention.num_heads), int(attention.head_dim)
    product = w.add("MatMul", split_heads(w, attention, query), key)
    scores = w.add("Mul", product, w.constant(f"scale_{width}", np.float32(width**-0.5)))
    if mask:
        scores = w.add("Add", scores, mask)
    mixed = w.add("MatMul", w.add("Softmax", scores, axis=-1), value)
    return w.add("Reshape", w.add("Transpose", mixed, perm=[0, 2, 1, 3]), w.integers(0, 0, heads * width))


def feed_forward(w: Writer, name: str, layer: Layer, x: str) -> str:
    """The feed-forward half of a layer: norm, two linear layers around GELU, residual. [..., width] -> the same shape"""
    hidden = w.linear(f"{name}.fc1", layer.fc1, w.norm(f"{name}.norm", layer.final_layer_norm, x))
    return w.add("Add", x, w.linear(f"{name}.fc2", layer.fc2, gelu(w, hidden)))


def gelu(w: Writer, x: str) -> str:
    """Exact GELU, x / 2 * (1 + erf(x / sqrt 2)), which onnxruntime fuses."""
    erf = w.add("Erf", w.add("Div", x, w.constant("root_2", np.float32(np.sqrt(2)))))
    grown = w.add("Mul", x, w.add("Add", erf, w.constant("1.0", np.float32(1))))
    return w.add("Mul", grown, w.constant("0.5", np.float32(0.5)))


def causal_mask(w: Writer, places: str, until: str) -> str:
    """Additive causal mask of a decoder's scores: 0 up to a token's own position, MASKED_SCORE for later ones.

    Args:
        w: the graph.
        places: the tokens' positions, int64 [tokens].
        until: number of tokens including the past, an int64 scalar.

    Returns:
        [tokens, until].
    """
    each = w.add("Range", w.constant("zero", np.array(0)), until, w.constant("one", np.array(1)))
    later = w.add("Greater", each, w.add("Unsqueeze", places, w.integers(1)))
    return w.add("Where", later, w.constant("far", np.float32(MASKED_SCORE)), w.constant("near", np.float32(0)))
