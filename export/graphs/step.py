"""The decoder of our own runtime: one graph for the prompt and for every token after it.

Caches are preallocated and written in place (TensorScatter, ONNX opset 24): bound as input and output, the past is never copied.
Cross-attention keys and values come from the encoder's graph. Only the last position is projected to logits, or as many of the last ones as
the caller asks for, which is how the runtime checks the tokens of a draft in one pass.

A pass over several tokens gives the logits of passes over one, to the last bit, on CPUs where onnxruntime's products of one row and of several
differ only in attention: one more query, of zeros, gives it two rows at least. Without that, differences of 1e-7 grow to 0.5 in weights of
4 or 8 bits, whose inputs are rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from export.graphs.writer import FLOAT, INT64, Writer
from workbench.models.whisper.forward.layers import DecoderAttention, DecoderLayer, decoder_of

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

OPSET = 24
EMBEDDING = "embedding"
TRANSPOSED = f"{EMBEDDING}_transposed_once"  # by this name edit.tied_transpose finds the tied matrix
PROJECT_FROM = "project_from"  # an optional input
END = 2**31 - 1  # of a slice: as far as it goes
SUPPRESSED_LOGIT = -1e4  # added to the logit of a suppressed token


def step_graph(
    model: WhisperForConditionalGeneration, suppress_tokens: list[int], begin_suppress_tokens: list[int],
    heads: Sequence[Sequence[int]] = (), exact: bool = True,
) -> ModelProto:  # fmt: skip
    """The graph of a WhisperForConditionalGeneration's decoder.

    Inputs: input_ids int64 [batch, tokens]; offset int64 [batch], number of positions already in the cache; cache_{k,v}.{layer}
    [batch, max_length, width]; cross_{k,v}.{layer} [batch, positions, width]; optionally project_from int64 [1], the first of the given tokens
    after which logits are wanted, counted from the end: -1, its default, is the last one.
    Outputs: logits [batch * wanted, vocabulary], clip by clip, suppressed tokens masked; next_{k,v}.{layer}, to be bound to the memory of
    cache_{k,v}.{layer}; with `heads`, alignment [batch, tokens, positions], their mean cross-attention.

    Args:
        model: in fp32 on the CPU.
        suppress_tokens: ids never written.
        begin_suppress_tokens: ids suppressed for the first token only.
        heads: [layer, head] of the alignment heads (cross-attention).
        exact: whether a pass over several tokens is to give the logits of passes over one, which drafts need. Dynamic int8 has one scale for all
            tokens of a pass and cannot; its graph is faster without.
    """
    decoder, config = decoder_of(model), model.config
    width = int(config.d_model)
    w = Writer()
    ids = w.input("input_ids", INT64, ["batch", "tokens"])
    offset = w.input("offset", INT64, ["batch"])
    project_from = w.optional_input(PROJECT_FROM, np.array([-1], np.int64))
    caches = [
        [w.input(f"cache_{kind}.{i}", FLOAT, ["batch", "max_length", width]) for kind in "kv"]
        for i in range(len(decoder.layers))
    ]
    crosses = [
        [w.input(f"cross_{kind}.{i}", FLOAT, ["batch", "positions", width]) for kind in "kv"]
        for i in range(len(decoder.layers))
    ]
    places = _places(w, ids, offset)
    embedding = w.constant(EMBEDDING, decoder.embed_tokens.weight.detach().numpy())
    positions = w.constant("positions", decoder.embed_positions.weight.detach().numpy())
    x = w.add("Add", w.add("Gather", embedding, ids), w.add("Gather", positions, places))
    zeros = ""
    if exact:  # the query of zeros after the tokens needs a place in the mask
        zeros = _zeros(w, offset, width)
        places = w.add("Concat", places, w.add("Unsqueeze", offset, w.integers(1)), axis=1)
    mask = _mask(w, places, caches[0][0])
    looked: list[str] = []
    for i, layer in enumerate(decoder.layers):
        mine = [int(head) for number, head in heads if number == i]
        x = _layer(w, f"layers.{i}", layer, x, offset, caches[i], crosses[i], mask, zeros, i, (mine, looked))
    wanted = w.add("Slice", x, project_from, w.integers(END), w.integers(1))  # [batch, wanted, width]
    rows, starts = w.add("Reshape", wanted, w.integers(-1, width)), _starts(w, offset, wanted)
    transposed = w.add("Transpose", embedding, to=TRANSPOSED, perm=[1, 0])
    logits = w.add("MatMul", w.norm("norm", decoder.layer_norm, rows), transposed)
    w.add("Add", logits, suppression(w, starts, config.vocab_size, suppress_tokens, begin_suppress_tokens), to="logits")
    w.output("logits", FLOAT, ["rows", int(config.vocab_size)])
    if looked:
        together = looked[0] if len(looked) == 1 else w.add("Concat", *looked, axis=1)
        w.add("ReduceMean", together, w.integers(1), to="alignment", keepdims=0)
        w.output("alignment", FLOAT, ["batch", "tokens", "positions"])
    for i in range(len(decoder.layers)):
        for kind in "kv":
            w.output(f"next_{kind}.{i}", FLOAT, ["batch", "max_length", width])
    return w.model("step", OPSET)


def _places(w: Writer, ids: str, offset: str) -> str:
    """Positions of the tokens. -> [batch, tokens]"""
    count = w.add("Gather", w.add("Shape", ids), w.constant("one", np.array(1)), axis=0)
    steps = w.add("Range", w.constant("zero", np.array(0)), count, w.constant("one", np.array(1)))
    return w.add("Add", w.add("Unsqueeze", offset, w.integers(1)), steps)


def _mask(w: Writer, places: str, cache: str) -> str:
    """Causal mask: the cache positions up to each token's own. -> bool [batch, 1, tokens, max_length]"""
    max_length = w.add("Gather", w.add("Shape", cache), w.constant("one", np.array(1)), axis=0)
    each = w.add("Range", w.constant("zero", np.array(0)), max_length, w.constant("one", np.array(1)))
    return w.add("LessOrEqual", each, w.add("Unsqueeze", places, w.integers(1, 3)))


def _starts(w: Writer, offset: str, wanted: str) -> str:
    """Which of the wanted positions come before a text's first token: the first one, if the cache was empty. -> bool [batch * wanted]"""
    count = w.add("Gather", w.add("Shape", wanted), w.constant("one", np.array(1)), axis=0)
    numbers = w.add("Range", w.constant("zero", np.array(0)), count, w.constant("one", np.array(1)))
    # of two numbers that are not negative, the sum is 0 where both are
    together = w.add("Add", w.add("Unsqueeze", offset, w.integers(1)), numbers)  # [batch, wanted]
    return w.add("Reshape", w.add("Equal", together, w.constant("zero", np.array(0))), w.integers(-1))


def _layer(
    w: Writer, name: str, layer: DecoderLayer, x: str, offset: str, cache: list[str], cross: list[str], mask: str, zeros: str,
    number: int, heads: tuple[list[int], list[str]],
) -> str:  # fmt: skip
    """One decoder layer. [batch, tokens, width] -> the same shape. The attention of its `heads` is appended to the list beside them."""
    import torch

    own = layer.self_attn
    weight = torch.cat([p.weight for p in (own.q_proj, own.k_proj, own.v_proj)])
    bias = torch.cat([own.q_proj.bias, torch.zeros_like(own.q_proj.bias), own.v_proj.bias])
    normed = w.norm(f"{name}.self_norm", layer.self_attn_layer_norm, x)
    joined = w.affine(f"{name}.self_qkv", weight, bias, normed)
    query, *new = w.split("Split", joined, to=[f"{name}.{part}" for part in "qkv"], axis=-1, num_outputs=3)
    kept = [
        w.add("TensorScatter", old, part, offset, to=f"next_{kind}.{number}", axis=1, mode="linear")
        for kind, old, part in zip("kv", cache, new, strict=True)
    ]
    x = w.add("Add", x, w.linear(f"{name}.self_out", own.out_proj, _attention(w, own, query, kept, zeros, mask)))
    other = layer.encoder_attn
    normed = w.norm(f"{name}.cross_norm", layer.encoder_attn_layer_norm, x)
    query = w.linear(f"{name}.cross_q", other.q_proj, normed)
    seen = _attention(w, other, query, cross, zeros, heads=heads)
    x = w.add("Add", x, w.linear(f"{name}.cross_out", other.out_proj, seen))
    normed = w.norm(f"{name}.norm", layer.final_layer_norm, x)
    hidden = w.add("Gelu", w.linear(f"{name}.fc1", layer.fc1, normed))
    return w.add("Add", x, w.linear(f"{name}.fc2", layer.fc2, hidden))


def _attention(
    w: Writer,
    attention: DecoderAttention,
    query: str,
    kept: list[str],
    zeros: str,
    mask: str = "",
    heads: tuple[list[int], list[str]] = ([], []),
) -> str:
    """Attention of the queries [batch, tokens, width]; `zeros`, if any, is one more, whose output is left out."""
    count = int(attention.num_heads)
    given = [w.add("Concat", query, zeros, axis=1) if zeros else query, *kept, *([mask] if mask else [])]
    how = {"q_num_heads": count, "kv_num_heads": count, "scale": float(attention.head_dim) ** -0.5, "is_causal": 0}
    mine, looked = heads
    if not mine:
        seen = w.add("Attention", *given, **how)
        return _without_last(w, seen, 1) if zeros else seen
    out = f"Attention_{len(w.nodes)}"
    # the fourth output holds the scores before the softmax: the CUDA provider supports no other mode
    w.split("Attention", *given, to=[out, "", "", f"{out}_scores"], qk_matmul_output_mode=0, **how)
    chosen = w.constant(f"{out}_heads", np.array(mine, np.int64))
    scores = w.add("Gather", f"{out}_scores", chosen, axis=1)  # [batch, heads, queries, positions]
    looked.append(w.add("Softmax", _without_last(w, scores, 2) if zeros else scores, axis=-1))
    return _without_last(w, out, 1) if zeros else out


def _without_last(w: Writer, x: str, axis: int) -> str:
    return w.add("Slice", x, w.integers(0), w.integers(-1), w.integers(axis))


def _zeros(w: Writer, offset: str, width: int) -> str:
    """One query of zeros for each clip. -> [batch, 1, width]"""
    shape = w.add("Concat", w.add("Shape", offset), w.integers(1, width), axis=0)
    return w.add("Expand", w.constant("no_query", np.zeros((1, 1, 1), np.float32)), shape)


def suppression(w: Writer, starts: str, size: int, always: list[int], first: list[int]) -> str:
    """Additive logit mask; where a text starts the tokens of `first` are masked as well. starts: bool [rows] -> [rows, vocabulary]"""
    begin, later = lowered(size, [*always, *first]), lowered(size, always)
    return w.add(
        "Where", w.add("Unsqueeze", starts, w.integers(1)), w.constant("begin", begin), w.constant("later", later)
    )


def lowered(size: int, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """Additive mask that suppresses some tokens. -> [size]"""
    row = np.zeros(size, np.float32)
    row[list(tokens)] = SUPPRESSED_LOGIT
    return row
