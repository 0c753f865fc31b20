"""The decoder as Hugging Face's clients call it: one graph with two branches, one for the prompt and one for every token after it.

Names, axes and order of inputs and outputs are those of Optimum's exporter, as transformers.js, onnx-asr and Optimum expect. Suppressed
tokens are masked inside the graph, because not every runtime does it. docs/decisions/0022-no-tracer.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto

from export.graphs.parts import attend, causal_mask, feed_forward, split_heads
from export.graphs.step import EMBEDDING, TRANSPOSED, lowered
from export.graphs.writer import BOOL, FLOAT, INT64, Writer
from workbench.models.whisper.forward.layers import Decoder, DecoderAttention, DecoderLayer, decoder_of

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

OPSET = 18
PAST, STATES, TOKENS = "past_decoder_sequence_length", "encoder_sequence_length", "decoder_sequence_length"
PARTS = [f"{whose}.{what}" for whose in ("decoder", "encoder") for what in ("key", "value")]


def merged_graph(
    model: WhisperForConditionalGeneration, suppress_tokens: Sequence[int], begin_suppress_tokens: Sequence[int]
) -> ModelProto:
    """The graph of a WhisperForConditionalGeneration's decoder.

    Inputs: input_ids int64 [batch_size, tokens]; encoder_hidden_states [batch_size, positions, width];
    past_key_values.{layer}.{decoder,encoder}.{key,value} [batch_size, heads, tokens or positions before, head width];
    use_cache_branch bool [1].
    Outputs: logits [batch_size, tokens, vocabulary]; present.{layer}.{decoder,encoder}.{key,value}. The branch without a past ignores
    past_key_values. The branch with one ignores encoder_hidden_states and returns empty encoder presents: the caller reuses those of the
    first call.

    Args:
        model: in fp32 on the CPU.
        suppress_tokens: ids never written.
        begin_suppress_tokens: ids suppressed for the first token only, which the branch without a past computes.
    """
    decoder, config = decoder_of(model), model.config
    w = Writer()
    w.input("input_ids", INT64, ["batch_size", TOKENS])
    w.input("encoder_hidden_states", FLOAT, ["batch_size", STATES, int(config.d_model)])
    axes = {"decoder": PAST, "encoder": STATES}
    outputs: list[tuple[str, list[int | str]]] = [("logits", ["batch_size", TOKENS, int(config.vocab_size)])]
    for i, layer in enumerate(decoder.layers):
        sizes = int(layer.self_attn.num_heads), int(layer.self_attn.head_dim)
        for part in PARTS:
            axis = axes[part.split(".")[0]]
            w.input(f"past_key_values.{i}.{part}", FLOAT, ["batch_size", sizes[0], axis, sizes[1]])
            after = f"{PAST} + {TOKENS}" if axis == PAST else axis
            outputs.append((f"present.{i}.{part}", ["batch_size", sizes[0], after, sizes[1]]))
    w.input("use_cache_branch", BOOL, [1])
    embedding = w.constant(EMBEDDING, decoder.embed_tokens.weight.detach().numpy())
    w.add(
        "Transpose", embedding, to=TRANSPOSED, perm=[1, 0]
    )  # outside the branches: onnxruntime folds it once, at load
    rows = {
        True: lowered(config.vocab_size, suppress_tokens),
        False: lowered(config.vocab_size, [*suppress_tokens, *begin_suppress_tokens]),
    }
    graphs = {cached: _branch(w, decoder, cached, rows[cached], outputs) for cached in (True, False)}
    names = [name for name, _ in outputs]
    w.split("If", "use_cache_branch", to=names, then_branch=graphs[True], else_branch=graphs[False])
    for name, shape in outputs:
        w.output(name, FLOAT, shape)
    return w.model("merged_decoder", OPSET)


def _branch(
    w: Writer,
    decoder: Decoder,
    cached: bool,
    row: npt.NDArray[np.float32],
    outputs: Sequence[tuple[str, list[int | str]]],
) -> GraphProto:
    """The decoder with or without a past."""
    b = w.branch("with_past" if cached else "first")
    count = b.add("Shape", "input_ids", start=1, end=2)
    before = b.add("Shape", "past_key_values.0.decoder.key", start=2, end=3) if cached else b.integers(0)
    start, until = b.add("Squeeze", before), b.add("Squeeze", b.add("Add", before, count))
    places = b.add("Range", start, until, b.constant("one", np.array(1)))  # [tokens]
    positions = b.constant("positions", decoder.embed_positions.weight.detach().numpy())
    x = b.add("Add", b.add("Gather", EMBEDDING, "input_ids"), b.add("Gather", positions, places))
    mask = causal_mask(b, places, until)
    presents: list[str] = []
    for i, layer in enumerate(decoder.layers):
        x, kept = _layer(b, i, layer, x, mask, cached)
        presents += kept
    logits = b.add("MatMul", b.norm("norm", decoder.layer_norm, x), TRANSPOSED)
    logits = b.add("Add", logits, b.constant("suppressed" if cached else "suppressed_first", row))
    for name, (_, shape) in zip([logits, *presents], outputs, strict=True):
        b.output(name, FLOAT, shape)
    return b.graph("with_past" if cached else "first")


def _layer(b: Writer, number: int, layer: DecoderLayer, x: str, mask: str, cached: bool) -> tuple[str, list[str]]:
    """One decoder layer. [batch, tokens, width] -> the same shape, and its four presents in order."""
    name, own, other = f"layers.{number}", layer.self_attn, layer.encoder_attn
    normed = b.norm(f"{name}.self_norm", layer.self_attn_layer_norm, x)
    query, key, value = (b.linear(f"{name}.self_{part}", getattr(own, f"{part}_proj"), normed) for part in "qkv")
    kept = [split_heads(b, own, new) for new in (key, value)]
    past = [f"past_key_values.{number}.{part}" for part in PARTS]
    if cached:
        kept = [b.add("Concat", old, new, axis=2) for old, new in zip(past[:2], kept, strict=True)]
    x = b.add("Add", x, b.linear(f"{name}.self_out", own.out_proj, _attend(b, own, query, kept, mask)))
    normed = b.norm(f"{name}.cross_norm", layer.encoder_attn_layer_norm, x)
    query = b.linear(f"{name}.cross_q", other.q_proj, normed)
    if cached:
        cross, empty = past[2:], np.zeros((0, int(other.num_heads), 1, int(other.head_dim)), np.float32)
        presents = [b.value(empty), b.value(empty)]
    else:
        cross = [split_heads(b, other, b.linear(f"{name}.cross_{part}", getattr(other, f"{part}_proj"), "encoder_hidden_states")) for part in "kv"]  # fmt: skip
        presents = cross
    x = b.add("Add", x, b.linear(f"{name}.cross_out", other.out_proj, _attend(b, other, query, cross)))
    return feed_forward(b, name, layer, x), [*kept, *presents]


def _attend(b: Writer, attention: DecoderAttention, query: str, kept: list[str], mask: str = "") -> str:
    """`attend` to keys in cache layout, [batch, heads, positions, head width]."""
    key, value = kept
    return attend(b, attention, query, b.add("Transpose", key, perm=[0, 1, 3, 2]), value, mask)
