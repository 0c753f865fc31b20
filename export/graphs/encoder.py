"""The graphs of the encoder and the frontend: log-mel features of any length; states and every decoder layer's cross-attention keys and values.

Written node by node, like the decoders: torch's tracer is deprecated, and its graphs have two to four times as many nodes
(docs/decisions/0022-no-tracer.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto
from torch import nn

from export.graphs.padding import LEAST, NEAR_FLOOR, WINDOW_FRAMES
from export.graphs.parts import attend, feed_forward, gelu, split_heads
from export.graphs.writer import FLOAT, INT64, Attribute, Writer
from workbench.models.whisper.forward.layers import Encoder, EncoderLayer, decoder_of, encoder_of
from workbench.models.whisper.forward.log_mel import DYNAMIC_RANGE, HOP_LENGTH, N_FFT, LogMel
from workbench.models.whisper.forward.pooling import pool_after

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

OPSET = 18


def encoder_graph(model: WhisperForConditionalGeneration, margin: int | None) -> ModelProto:
    """The graph of a WhisperForConditionalGeneration's encoder.

    Input: input_features [batch_size, mels, frames].
    Outputs: n_layer_cross_k and n_layer_cross_v [layers, batch_size, positions, width], which sherpa-onnx identifies by position;
    last_hidden_state [batch_size, positions, width].

    Args:
        model: in fp32 on the CPU.
        margin: frames of silence to keep after the longest clip, as in `padding.trim_or_pad_silence`.
    """
    encoder, decoder, config = encoder_of(model), decoder_of(model), model.config
    width, layers = int(config.d_model), len(decoder.layers)
    w = Writer()
    features = w.input("input_features", FLOAT, ["batch_size", int(config.num_mel_bins), "frames"])
    x = encoder_nodes(w, encoder, pool_after(config), _as_trained(w, features, margin), to="last_hidden_state")
    attentions = [layer.encoder_attn for layer in decoder.layers]
    for kind in "kv":
        each = [w.linear(f"cross_{kind}.{i}", getattr(a, f"{kind}_proj"), x) for i, a in enumerate(attentions)]
        w.add("Concat", *(w.add("Unsqueeze", one, w.integers(0)) for one in each), to=f"n_layer_cross_{kind}", axis=0)
        w.output(f"n_layer_cross_{kind}", FLOAT, [layers, "batch_size", "encoder_sequence_length", width])
    w.output("last_hidden_state", FLOAT, ["batch_size", "encoder_sequence_length", width])
    return w.model("encoder", OPSET)


def encoder_nodes(w: Writer, encoder: Encoder, pools: int | None, features: str, to: str = "") -> str:
    """Whisper's encoder as nodes. [clips, mels, an even number of frames] -> [clips, positions, width]

    Args:
        w: the graph.
        encoder: a WhisperEncoder.
        pools: the layer after which states are pooled, from `pool_after`.
        features: log-mel features.
        to: the name of the result.
    """
    x = features
    for name in ("conv1", "conv2"):
        x = gelu(w, convolution(w, name, getattr(encoder, name), x))
    x = w.add("Transpose", x, perm=[0, 2, 1])  # [batch, positions, width]
    positions = w.constant("positions", encoder.embed_positions.weight.detach().numpy())
    x = w.add("Add", x, w.add("Slice", positions, w.integers(0), size_of(w, x, 1), w.integers(0)))
    for i, layer in enumerate(encoder.layers):
        x = _layer(w, f"layers.{i}", layer, x)
        if i + 1 == pools:
            x = _pooled(w, x)
    return w.norm("norm", encoder.layer_norm, x, to=to)


def frontend_graph(mels: int) -> ModelProto:
    """Log-mel features as a graph, equal to `LogMel`: waves [batch_size, samples] -> input_features [batch_size, mels, frames]."""
    w = Writer()
    log_mel_nodes(w, mels, w.input("waves", FLOAT, ["batch_size", "samples"]), to="input_features")
    w.output("input_features", FLOAT, ["batch_size", mels, "frames"])
    return w.model("frontend", OPSET)


def log_mel_nodes(w: Writer, mels: int, waves: str, to: str = "") -> str:
    """Log-mel features as nodes. [clips, samples] -> [clips, mels, frames]"""
    module = LogMel(mels)
    waves = w.add("Unsqueeze", waves, w.integers(1))
    half = N_FFT // 2
    padded = w.add("Pad", waves, w.integers(0, 0, half, 0, 0, half), mode="reflect")
    basis = w.constant("basis", module.basis.numpy())
    spectrum = w.add("Conv", padded, basis, kernel_shape=[N_FFT], strides=[HOP_LENGTH])  # [batch, 2 * bins, frames + 1]
    spectrum = w.add("Slice", spectrum, w.integers(0), w.integers(-1), w.integers(2))
    power = w.add("Mul", spectrum, spectrum)
    power = w.add("Add", *w.split("Split", power, to=[f"{w.begin}real", f"{w.begin}imaginary"], axis=1, num_outputs=2))
    mel = w.add("MatMul", w.constant("filters", module.filters.numpy()), power)
    log = w.add("Log", w.add("Clip", mel, w.constant("least", np.float32(1e-10))))
    log = w.add("Mul", log, w.constant("to_log10", np.float32(1 / np.log(10))))
    floor = w.add("Sub", w.add("ReduceMax", log, w.integers(1, 2)), w.constant("range", np.float32(DYNAMIC_RANGE)))
    raised = w.add("Add", w.add("Max", log, floor), w.constant("four", np.float32(4)))
    return w.add("Div", raised, w.constant("four", np.float32(4)), to=to)


def _as_trained(w: Writer, features: str, margin: int | None) -> str:
    """`padding.trim_or_pad_silence` as nodes. [clips, mels, frames] -> [clips, mels, an even number of frames]"""
    nothing, size = w.constant("0.0", np.float32(0)), w.add("ReduceMax", w.add("Abs", features), w.integers(1))
    zero = w.add("Equal", size, nothing)  # [clips, 1, frames]
    spoken = w.add("Where", zero, w.constant("infinity", np.float32(np.inf)), features)
    floor = w.add("ReduceMin", spoken, w.integers(1, 2))  # [clips, 1, 1]
    all_zero = w.add("Equal", w.add("ReduceMax", size, w.integers(2)), nothing)
    floor = w.add("Where", all_zero, w.constant("silence", np.float32(LEAST)), floor)
    features = w.add("Where", zero, floor, features)
    if margin is None:
        missing = w.add("Sub", w.integers(WINDOW_FRAMES), size_of(w, features, 2))
        filling = w.add("Concat", w.add("Shape", features, start=0, end=2), missing, axis=0)
        return w.add("Concat", features, w.add("Expand", floor, filling), axis=2)
    loudest = w.add("ReduceMax", features, w.integers(1), keepdims=0)  # [clips, frames]
    floor = w.add("Squeeze", floor, w.integers(2))
    heard = w.add("Greater", loudest, w.add("Add", floor, w.constant("near_floor", np.float32(NEAR_FLOOR))))
    frames = w.add("Squeeze", size_of(w, features, 2))
    numbers = w.add("Range", w.constant("one", np.array(1)), w.add("Add", frames, w.constant("one", np.array(1))), w.constant("one", np.array(1)))  # fmt: skip
    last = w.add("ReduceMax", w.add("Mul", w.cast(heard, INT64), numbers), w.integers(0, 1), keepdims=0)
    kept = w.add("Div", w.add("Add", last, w.constant("margin", np.array(margin + 1))), w.constant("two", np.array(2)))
    kept = w.add("Mul", kept, w.constant("two", np.array(2)))
    return w.add("Slice", features, w.integers(0), w.add("Unsqueeze", kept, w.integers(0)), w.integers(2))


def _layer(w: Writer, name: str, layer: EncoderLayer, x: str) -> str:
    """One encoder layer. [batch, positions, width] -> the same"""
    attention = layer.self_attn
    normed = w.norm(f"{name}.self_norm", layer.self_attn_layer_norm, x)
    query, key, value = (w.linear(f"{name}.self_{part}", getattr(attention, f"{part}_proj"), normed) for part in "qkv")
    mixed = attend(w, attention, query, split_heads(w, attention, key, turned=True), split_heads(w, attention, value))
    x = w.add("Add", x, w.linear(f"{name}.self_out", attention.out_proj, mixed))
    return feed_forward(w, name, layer, x)


def _pooled(w: Writer, x: str) -> str:
    """`pooling.pooled` as nodes: the mean of two neighbours. [batch, positions, width] -> [batch, half of them, width]"""
    end, two = w.integers(np.iinfo(np.int64).max), w.integers(2)
    first = w.add("Slice", x, w.integers(0), end, w.integers(1), two)
    again = w.add("Concat", x, w.add("Slice", x, w.integers(-1), end, w.integers(1)), axis=1)
    second = w.add("Slice", again, w.integers(1), end, w.integers(1), two)
    return w.add("Div", w.add("Add", first, second), w.constant("2.0", np.float32(2)))


def convolution(w: Writer, name: str, layer: nn.Conv1d, x: str) -> str:
    """A torch Conv1d. [clips, channels, frames] -> [clips, channels, frames]"""
    given = [w.constant(f"{name}.weight", layer.weight.detach().numpy())]
    if layer.bias is not None:
        given.append(w.constant(f"{name}.bias", layer.bias.detach().numpy()))
    pad = int(layer.padding[0])
    how: dict[str, Attribute] = {
        "kernel_shape": list(layer.kernel_size),
        "strides": list(layer.stride),
        "pads": [pad, pad],
    }
    if layer.groups > 1:
        how["group"] = layer.groups
    return w.split("Conv", x, *given, to=[w.name_of("Conv")], **how)[0]


def size_of(w: Writer, x: str, axis: int) -> str:
    """The size of an axis, int64 [1]."""
    return w.add("Shape", x, start=axis, end=axis + 1)
