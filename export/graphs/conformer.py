"""Parakeet's encoder as nodes: log-mel features, convolutions that shorten them, conformer layers.

Attention knows how far apart two positions are from a projection of sines and cosines, which depends on the distance alone: each layer has it as a
table of all distances in the longest clip. A batch norm is part of the convolution before it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from export.graphs.encoder import size_of
from export.graphs.names import IN_FP32
from export.graphs.parts import attend, split_heads
from export.graphs.writer import FLOAT, Attribute, Writer
from workbench.models.ctc.parakeet_features import EPSILON, GUARD, HOP_LENGTH, LEAST_FRAMES, SHORTEST, WINDOW

if TYPE_CHECKING:
    from workbench.models.ctc.parakeet_family import ParakeetCtc


def conformer_nodes(w: Writer, model: Any, family: ParakeetCtc, waves: str, silence: int, longest: int) -> str:
    """Features and encoder. [clips, samples] -> [clips, positions, width]

    Args:
        w: the graph.
        model: a ParakeetEncoderForCTC in fp32 on the CPU.
        family: its features.
        waves: of one length, without the silence after them.
        silence: samples of it.
        longest: most samples of a clip with its silence.
    """
    encoder = model.encoder
    w.begin = IN_FP32
    features = _log_mel(w, family, waves, silence, longest)
    w.begin = ""
    x = _shortened(w, encoder.subsampling, features)
    x = w.add("Mul", x, w.constant("input_scale", np.float32(encoder.input_scale)))
    tables = _Distances(w, encoder, x, family.positions(longest))
    for i, layer in enumerate(encoder.layers):
        x = _layer(w, f"layers.{i}", layer, x, tables)
    return x


def _log_mel(w: Writer, family: ParakeetCtc, waves: str, silence: int, longest: int) -> str:
    """`ParakeetLogMel` as nodes. [clips, samples] -> [clips, mels, frames]"""
    waves = w.add("Slice", waves, w.integers(0), w.integers(longest), w.integers(1))
    samples = size_of(w, waves, 1)
    whole = w.add("Min", w.add("Add", samples, w.integers(silence)), w.integers(longest))
    whole = w.add("Max", whole, w.integers(SHORTEST))
    padded = w.add("Pad", waves, w.add("Concat", w.integers(0, 0, 0), w.add("Sub", whole, samples), axis=0))
    before = w.add("Pad", w.add("Slice", padded, w.integers(0), w.integers(-1), w.integers(1)), w.integers(0, 1, 0, 0))
    share = w.constant("preemphasis", np.float32(family.frontend.preemphasis))
    waves = w.add("Unsqueeze", w.add("Sub", padded, w.add("Mul", before, share)), w.integers(1))
    basis = w.constant("basis", family.frontend.basis.numpy())
    how: dict[str, Attribute] = {"kernel_shape": [WINDOW], "strides": [HOP_LENGTH], "pads": [WINDOW // 2] * 2}
    spectrum = w.split("Conv", waves, basis, to=[w.name_of("Conv")], **how)[0]  # [clips, 2 * bins, frames + 1]
    spectrum = w.add("Slice", spectrum, w.integers(0), w.integers(-1), w.integers(2))
    squares = w.add("Mul", spectrum, spectrum)
    power = w.add(
        "Add", *w.split("Split", squares, to=[f"{w.begin}real", f"{w.begin}imaginary"], axis=1, num_outputs=2)
    )
    mel = w.add("MatMul", w.constant("filters", family.frontend.filters.numpy()), power)
    one = w.constant("guarded", np.float32(1))
    log = w.add("Log", w.add("Add", w.add("Mul", mel, w.constant("guard", np.float32(1 / GUARD))), one))
    own = w.add("Max", w.add("Div", samples, w.integers(HOP_LENGTH)), w.integers(LEAST_FRAMES))
    spoken = w.add("Slice", log, w.integers(0), own, w.integers(2))
    mean = w.add("ReduceMean", spoken, w.integers(2))
    away = w.add("Sub", spoken, mean)
    degrees = w.cast(w.add("Sub", own, w.integers(1)), FLOAT)
    variance = w.add("Div", w.add("ReduceSum", w.add("Mul", away, away), w.integers(2)), degrees)
    deviation = w.add("Add", w.add("Sqrt", variance), w.constant("deviation_epsilon", np.float32(EPSILON)))
    return w.add("Div", w.add("Sub", log, mean), deviation)


def _shortened(w: Writer, subsampling: Any, features: str) -> str:
    """The convolutions over time and bands. [clips, mels, frames] -> [clips, positions, width]"""
    x = w.add("Unsqueeze", w.add("Transpose", features, perm=[0, 2, 1]), w.integers(1))  # [clips, 1, frames, mels]
    for i, layer in enumerate(subsampling.layers):
        x = _convolution(w, f"subsampling.{i}", layer, x) if isinstance(layer, nn.Conv2d) else w.add("Relu", x)
    turned = w.add("Transpose", x, perm=[0, 2, 1, 3])  # [clips, positions, channels, bands]
    flat = w.add("Reshape", turned, w.integers(0, 0, int(subsampling.linear.in_features)))
    return w.linear("subsampling.linear", subsampling.linear, flat)


def _convolution(w: Writer, name: str, layer: nn.Conv2d, x: str) -> str:
    """A torch Conv2d. [clips, channels, frames, bands] -> [clips, channels, frames, bands]"""
    given = [w.constant(f"{name}.weight", layer.weight.detach().numpy())]
    if layer.bias is not None:
        given.append(w.constant(f"{name}.bias", layer.bias.detach().numpy()))
    pads = [int(pad) for pad in layer.padding] * 2
    how: dict[str, Attribute] = {"kernel_shape": list(layer.kernel_size), "strides": list(layer.stride), "pads": pads}
    return w.split("Conv", x, *given, to=[w.name_of("Conv")], group=layer.groups, **how)[0]


class _Distances:
    """Scores by the distance between a query's and a key's position."""

    def __init__(self, w: Writer, encoder: Any, x: str, longest: int) -> None:
        """Prepare for states x [clips, positions, width], of at most `longest` positions."""
        with torch.no_grad():
            # [1, distances, width], from the largest to the smallest: query - key
            self.angles: Tensor = encoder.encode_positions(torch.zeros(1, longest, encoder.config.hidden_size))
        self.count = size_of(w, x, 1)
        self.begin = w.add("Sub", w.integers(longest), self.count)
        self.end = w.add("Add", w.integers(longest - 1), self.count)

    @torch.no_grad()
    def scores(self, w: Writer, name: str, attention: Any, query: str) -> str:
        """Query [clips, heads, positions, head width] -> [clips, heads, positions, positions]"""
        heads, width = int(attention.config.num_attention_heads), int(attention.head_dim)
        projected = attention.relative_k_proj(self.angles)[0].view(-1, heads, width).permute(1, 2, 0)
        table = w.constant(f"{name}.distances", projected.numpy())  # [heads, head width, distances]
        near = w.add("Slice", table, self.begin, self.end, w.integers(2))
        all_scores = w.add("MatMul", query, near)  # [clips, heads, positions, 2 * positions - 1]
        # row i begins at distance i - (positions - 1) of its first key: read in rows that are one shorter, each is shifted by one more
        padded = w.add("Pad", all_scores, w.integers(0, 0, 0, 1, 0, 0, 0, 0))
        turned = w.add("Reshape", padded, w.add("Concat", w.integers(0, 0, -1), self.count, axis=0))
        rest = w.add("Slice", turned, w.integers(1), w.integers(np.iinfo(np.int64).max), w.integers(2))
        shifted = w.add("Reshape", rest, w.add("Concat", w.integers(0, 0), self.count, w.integers(-1), axis=0))
        return w.add("Slice", shifted, w.integers(0), self.count, w.integers(3))


def _layer(w: Writer, name: str, layer: Any, x: str, distances: _Distances) -> str:
    """A conformer layer: half a feed-forward, attention, convolution, half a feed-forward. [clips, positions, width] -> the same"""
    x = _half_feed_forward(w, f"{name}.first", layer.norm_feed_forward1, layer.feed_forward1, x)
    given = w.norm(f"{name}.self_norm", layer.norm_self_att, x)
    x = w.add("Add", x, _attention(w, name, layer.self_attn, given, distances))
    given = w.norm(f"{name}.conv_norm", layer.norm_conv, x)
    x = w.add("Add", x, _convolved(w, f"{name}.conv", layer.conv, given))
    x = _half_feed_forward(w, f"{name}.last", layer.norm_feed_forward2, layer.feed_forward2, x)
    return w.norm(f"{name}.norm", layer.norm_out, x)


def _half_feed_forward(w: Writer, name: str, norm: nn.LayerNorm, part: Any, x: str) -> str:
    hidden = _silu(w, w.linear(f"{name}.fc1", part.linear1, w.norm(f"{name}.norm", norm, x)))
    return w.add(
        "Add", x, w.add("Mul", w.linear(f"{name}.fc2", part.linear2, hidden), w.constant("half", np.float32(0.5)))
    )


@torch.no_grad()
def _attention(w: Writer, name: str, attention: Any, x: str, distances: _Distances) -> str:
    """[clips, positions, width] -> the same"""
    sizes: Any = SimpleNamespace(num_heads=attention.config.num_attention_heads, head_dim=attention.head_dim)
    query, key, value = (w.linear(f"{name}.self_{part}", getattr(attention, f"{part}_proj"), x) for part in "qkv")
    content, position = (
        w.add("Add", query, w.constant(f"{name}.bias_{which}", getattr(attention, f"bias_{which}").flatten().numpy()))
        for which in "uv"
    )
    apart = distances.scores(w, name, attention, split_heads(w, sizes, position))
    scaled = w.add("Mul", apart, w.constant(f"scale_{sizes.head_dim}", np.float32(sizes.head_dim**-0.5)))
    keys, values = split_heads(w, sizes, key, turned=True), split_heads(w, sizes, value)
    return w.linear(f"{name}.self_out", attention.o_proj, attend(w, sizes, content, keys, values, scaled))


@torch.no_grad()
def _convolved(w: Writer, name: str, part: Any, x: str) -> str:
    """The convolution module, whose products over one position are matrix products here. [clips, positions, width] -> the same"""
    first, last, depthwise, norm = part.pointwise_conv1, part.pointwise_conv2, part.depthwise_conv, part.norm
    both = w.affine(f"{name}.first", first.weight[..., 0], first.bias, x)
    signal, gate = w.split("Split", both, to=[w.name_of("Split"), f"{w.name_of('Split')}_b"], axis=-1, num_outputs=2)
    # [clips, width, positions]
    gated = w.add("Transpose", w.add("Mul", signal, w.add("Sigmoid", gate)), perm=[0, 2, 1])
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = norm.bias - norm.running_mean * scale
    if depthwise.bias is not None:
        bias = bias + depthwise.bias * scale
    weights = [w.constant(f"{name}.depthwise.weight", (depthwise.weight * scale[:, None, None]).numpy()),
               w.constant(f"{name}.depthwise.bias", bias.numpy())]  # fmt: skip
    how: dict[str, Attribute] = {"kernel_shape": list(depthwise.kernel_size), "pads": [int(part.padding)] * 2}
    mixed = w.split("Conv", gated, *weights, to=[w.name_of("Conv")], group=depthwise.groups, **how)[0]
    turned = w.add("Transpose", _silu(w, mixed), perm=[0, 2, 1])
    return w.affine(f"{name}.last", last.weight[..., 0], last.bias, turned)


def _silu(w: Writer, x: str) -> str:
    """Each value times its sigmoid."""
    return w.add("Mul", x, w.add("Sigmoid", x))
