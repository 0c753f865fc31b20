"""The graph of a model with a CTC head: waves in, logits at every position out, whatever the encoder.

Features and trailing silence are inside, so a runtime only has to read a wave, take the likeliest token at each position, and leave out
repetitions and blanks. The input and the output have the names that Hugging Face's runtimes look for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from onnx import ModelProto
from torch import nn

from export.graphs.conformer import conformer_nodes
from export.graphs.encoder import convolution, encoder_nodes, log_mel_nodes, size_of
from export.graphs.names import IN_FP32
from export.graphs.parts import attend, gelu, split_heads
from export.graphs.writer import FLOAT, Writer
from workbench.audio.decode import SAMPLE_RATE
from workbench.core.errors import UserError
from workbench.models.ctc.parakeet_model import MODEL_TYPE as PARAKEET
from workbench.models.ctc.waves import EPSILON, base_of
from workbench.models.whisper.forward.log_mel import SAMPLES_PER_POSITION

if TYPE_CHECKING:
    from workbench.models.ctc.family import CtcFamily
    from workbench.models.ctc.parakeet_family import ParakeetCtc

OPSET = 18


def ctc_graph(model: nn.Module, family: CtcFamily) -> ModelProto:
    """The whole model as a graph, which gives what the family's features, encoder and head give.

    Input: input_values [batch_size, samples], waves of one length at 16 kHz, of at most 30 s.
    Output: logits [batch_size, positions, vocabulary].

    Raises:
        UserError: the encoder is of a kind that is not written yet.
    """
    w = Writer()
    waves = w.input("input_values", FLOAT, ["batch_size", "samples"])
    silence = round(family.silence * SAMPLE_RATE)
    longest = round(family.window_seconds * SAMPLE_RATE)
    whole: Any = model
    if family.reads_waves:
        x = _wave_encoder(w, whole, family, waves, silence, longest)
    elif whole.config.model_type == PARAKEET:
        x = conformer_nodes(w, whole, cast("ParakeetCtc", family), waves, silence, longest)
    else:
        w.begin = IN_FP32
        features = log_mel_nodes(
            w, int(whole.config.num_mel_bins), _padded(w, waves, silence, longest, SAMPLES_PER_POSITION)
        )
        w.begin = ""
        x = encoder_nodes(w, whole.model.encoder, None, features)
    w.add("Identity", w.linear("head", whole.lm_head, x), to="logits")
    w.output("logits", FLOAT, ["batch_size", "positions", family.vocabulary_size])
    return w.model("ctc", OPSET)


def check_architecture(family: CtcFamily) -> None:
    """Raise UserError for an encoder that `ctc_graph` cannot write."""
    config = family.config
    if config.model_type == PARAKEET:
        if (name := config.encoder_config.hidden_act) not in ("silu", "swish"):  # the same
            raise UserError(f"{family.folder}: hidden_act is {name!r}; only 'silu' is exported yet")
        return
    if not family.reads_waves:
        return
    if getattr(config, "conv_pos_batch_norm", False):
        raise UserError(f"{family.folder}: conv_pos_batch_norm is not exported yet")
    for key in ("feat_extract_activation", "hidden_act"):
        if getattr(config, key) != "gelu":
            raise UserError(f"{family.folder}: {key} is {getattr(config, key)!r}; only 'gelu' is exported yet")


def _padded(w: Writer, waves: str, silence: int, longest: int, multiple: int) -> str:
    """Waves with zeros after them: `silence` samples, up to `longest`, then up to a whole number of `multiple`. [clips, samples] -> the same"""
    waves = w.add("Slice", waves, w.integers(0), w.integers(longest), w.integers(1))
    heard = size_of(w, waves, 1)
    whole = w.add("Min", w.add("Add", heard, w.integers(silence)), w.integers(longest))
    parts = w.add("Div", w.add("Add", whole, w.integers(multiple - 1)), w.integers(multiple))
    missing = w.add("Sub", w.add("Mul", parts, w.integers(multiple)), heard)
    return w.add("Pad", waves, w.add("Concat", w.integers(0, 0, 0), missing, axis=0))


def _wave_encoder(w: Writer, model: Any, family: Any, waves: str, silence: int, longest: int) -> str:
    """wav2vec2's, HuBERT's and WavLM's encoder. [clips, samples] -> [clips, positions, width]"""
    config, base = model.config, base_of(model)
    w.begin = IN_FP32  # a wave of 30 s has too many samples for sums in fp16
    waves = w.add("Slice", waves, w.integers(0), w.integers(longest), w.integers(1))
    samples = size_of(w, waves, 1)
    if family.normalize:
        centred = w.add("Sub", waves, w.add("ReduceMean", waves, w.integers(1)))
        variance = w.add("ReduceMean", w.add("Mul", centred, centred), w.integers(1))
        root = w.add("Sqrt", w.add("Add", variance, w.constant("epsilon", np.float32(EPSILON))))
        waves = w.add("Div", centred, root)
    shortest = family.samples(1) - family.samples_per_position + 1  # samples of one frame
    short = w.add("Max", w.add("Sub", w.integers(shortest), samples), w.integers(0))
    room = w.add("Min", w.integers(silence), w.add("Sub", w.integers(longest), samples))
    missing = w.add("Max", room, short)
    padded = w.add("Pad", waves, w.add("Concat", w.integers(0, 0, 0), missing, axis=0))
    x = w.add("Unsqueeze", padded, w.integers(1))  # [clips, 1, samples]
    for i, layer in enumerate(base.feature_extractor.conv_layers):
        x, samples = _convolved(w, f"conv.{i}", layer, x, samples)
        w.begin = ""
    x = w.add("Transpose", x, perm=[0, 2, 1])  # [clips, positions, channels]
    projection = base.feature_projection
    if getattr(config, "feat_proj_layer_norm", True):
        x = w.norm("projection.norm", projection.layer_norm, x)
    x = w.linear("projection", projection.projection, x)
    x = w.add("Add", x, _positions(w, base.encoder.pos_conv_embed, x))
    stable = bool(config.do_stable_layer_norm)
    if not stable:
        x = w.norm("norm", base.encoder.layer_norm, x)
    distances = ""
    if config.model_type == "wavlm":
        distances = _distance_bias(w, base.encoder.layers[0].attention, x, family.positions(longest))
    for i, layer in enumerate(base.encoder.layers):
        x = _layer(w, f"layers.{i}", layer, x, stable, distances)
    return w.norm("norm", base.encoder.layer_norm, x) if stable else x


def _convolved(w: Writer, name: str, layer: Any, x: str, samples: str) -> tuple[str, str]:
    """A convolution over the waves, its norm and its activation. [clips, channels, frames] -> the same

    `samples`: frames of its input that are not silence, int64 [1]; the same of its output is returned, too: a norm over time is computed on these alone.
    """
    kernel, stride = int(layer.conv.kernel_size[0]), int(layer.conv.stride[0])
    x = convolution(w, name, layer.conv, x)
    own = w.add("Add", w.add("Div", w.add("Sub", samples, w.integers(kernel)), w.integers(stride)), w.integers(1))
    own = w.add("Max", own, w.integers(1))
    norm = getattr(layer, "layer_norm", None)
    if isinstance(norm, nn.GroupNorm):  # of each channel over time
        spoken = w.add("Slice", x, w.integers(0), own, w.integers(2))
        mean = w.add("ReduceMean", spoken, w.integers(2))
        away = w.add("Sub", spoken, mean)
        variance = w.add("ReduceMean", w.add("Mul", away, away), w.integers(2))
        root = w.add("Sqrt", w.add("Add", variance, w.constant("norm_epsilon", np.float32(norm.eps))))
        normed = w.add("Div", w.add("Sub", x, mean), root)
        scale, shift = (part.detach().numpy()[:, None] for part in (norm.weight, norm.bias))
        x = w.add("Mul", normed, w.constant(f"{name}.scale", scale))
        x = w.add("Add", x, w.constant(f"{name}.shift", shift))
    elif norm is not None:
        turned = w.norm(f"{name}.norm", norm, w.add("Transpose", x, perm=[0, 2, 1]))
        x = w.add("Transpose", turned, perm=[0, 2, 1])
    return gelu(w, x), own


def _positions(w: Writer, embedding: Any, x: str) -> str:
    """The convolution that tells positions apart. [clips, positions, width] -> the same"""
    turned = w.add("Transpose", x, perm=[0, 2, 1])
    out = convolution(w, "positions", embedding.conv, turned)
    if embedding.conv.kernel_size[0] % 2 == 0:
        out = w.add("Slice", out, w.integers(0), w.integers(-1), w.integers(2))
    return w.add("Transpose", gelu(w, out), perm=[0, 2, 1])


def _distance_bias(w: Writer, attention: Any, x: str, longest: int) -> str:
    """WavLM's bias of the scores by the distance between two positions. x: [clips, positions, width] -> [heads, positions, positions]

    `longest`: most positions of a clip. The distances are sorted into buckets here, so the graph has one row for each distance.
    """
    distances = torch.arange(1 - longest, longest)  # key - query
    buckets = attention._relative_positions_bucket(distances)
    table = attention.rel_attn_embed.weight[buckets].detach().numpy()  # [distances, heads]
    count = w.add("Squeeze", size_of(w, x, 1), w.integers(0))
    each = w.add("Range", w.constant("zero", np.array(0)), count, w.constant("one", np.array(1)))
    apart = w.add("Sub", each, w.add("Unsqueeze", each, w.integers(1)))  # [queries, keys]
    rows = w.add("Add", apart, w.integers(longest - 1))
    return w.add("Transpose", w.add("Gather", w.constant("distances", table), rows, axis=0), perm=[2, 0, 1])


def _gated(w: Writer, name: str, attention: Any, x: str, distances: str) -> str:
    """WavLM's bias by distance, times a gate that each head computes from its part of the input.

    `x`: [clips, positions, width], `distances`: [heads, positions, positions] -> [clips, heads, positions, positions].
    """
    projection = attention.gru_rel_pos_linear
    # its eight outputs are added up in fours, and a sum of outputs is the output of the summed weights
    weight = projection.weight.view(2, 4, -1).sum(1)
    bias = projection.bias.view(2, 4).sum(1)
    begin, w.begin = w.begin, IN_FP32  # two columns: nothing to gain by rounding them
    gates = w.add("Sigmoid", w.affine(f"{name}.gate", weight, bias, split_heads(w, attention, x)))
    first, second = w.split("Split", gates, to=[w.name_of("Split"), f"{w.name_of('Split')}_b"], axis=-1, num_outputs=2)
    constant = w.constant(f"{name}.gate.scale", attention.gru_rel_pos_const.detach().numpy())
    inner = w.add("Sub", w.add("Mul", second, constant), w.constant("gate_one", np.float32(1)))
    gate = w.add("Add", w.add("Mul", first, inner), w.constant("gate_two", np.float32(2)))
    w.begin = begin
    return w.add("Mul", gate, distances)


def _layer(w: Writer, name: str, layer: Any, x: str, stable: bool, distances: str) -> str:
    """A layer; `stable` ones have their norms before their halves, others after. [clips, positions, width] -> the same

    `distances`: WavLM's bias by distance, [heads, positions, positions]; empty for the others.
    """
    attention = layer.attention
    given = w.norm(f"{name}.self_norm", layer.layer_norm, x) if stable else x
    query, key, value = (w.linear(f"{name}.self_{part}", getattr(attention, f"{part}_proj"), given) for part in "qkv")
    keys, values = split_heads(w, attention, key, turned=True), split_heads(w, attention, value)
    bias = _gated(w, name, attention, given, distances) if distances else ""
    mixed = attend(w, attention, query, keys, values, bias)
    x = w.add("Add", x, w.linear(f"{name}.self_out", attention.out_proj, mixed))
    if not stable:
        x = w.norm(f"{name}.self_norm", layer.layer_norm, x)
    given = w.norm(f"{name}.norm", layer.final_layer_norm, x) if stable else x
    hidden = gelu(w, w.linear(f"{name}.fc1", layer.feed_forward.intermediate_dense, given))
    x = w.add("Add", x, w.linear(f"{name}.fc2", layer.feed_forward.output_dense, hidden))
    if (adapter := getattr(layer, "adapter_layer", None)) is not None:  # of one language, in MMS
        inner = w.linear(f"{name}.adapter_1", adapter.linear_1, w.norm(f"{name}.adapter_norm", adapter.norm, x))
        x = w.add("Add", x, w.linear(f"{name}.adapter_2", adapter.linear_2, w.add("Relu", inner)))
    return x if stable else w.norm(f"{name}.norm", layer.final_layer_norm, x)
