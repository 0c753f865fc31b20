"""The decoder as sherpa-onnx calls it: the caches of all layers in one tensor of full context length, passed in and out at every step.

Uses only operators of old onnxruntime versions, because sherpa-onnx ships its own. sherpa-onnx suppresses no tokens, so the graph does. The
model properties that sherpa-onnx needs are in the encoder's metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from onnx import ModelProto

from export.graphs.parts import attend, causal_mask, feed_forward, split_heads
from export.graphs.step import EMBEDDING, TRANSPOSED, suppression
from export.graphs.writer import FLOAT, INT64, Writer
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.layers import DecoderAttention, decoder_of

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

OPSET = 17


def sherpa_graph(
    model: WhisperForConditionalGeneration, suppress_tokens: list[int], begin_suppress_tokens: list[int]
) -> ModelProto:
    """The graph of a WhisperForConditionalGeneration's decoder, with sherpa-onnx's six inputs and three outputs in its order.

    Args:
        model: in fp32 on the CPU.
        suppress_tokens: ids never written.
        begin_suppress_tokens: ids suppressed for the first token only.
    """
    decoder, config = decoder_of(model), model.config
    layers, width, context = len(decoder.layers), int(config.d_model), int(config.max_target_positions)
    w = Writer()
    ids = w.input("tokens", INT64, ["batch", "n_tokens"])
    own = [w.input(f"in_n_layer_self_{kind}_cache", FLOAT, [layers, "batch", context, width]) for kind in "kv"]
    cross = [w.input(f"n_layer_cross_{kind}", FLOAT, [layers, "batch", "n_positions", width]) for kind in "kv"]
    offset = w.input("offset", INT64, [1])
    count = w.add("Slice", w.add("Shape", ids), w.integers(1), w.integers(2))
    until = w.add("Add", offset, count)  # [1]
    places = w.add("Range", *(w.add("Squeeze", x) for x in (offset, until)), w.constant("one", np.array(1)))  # [tokens]
    embedding = w.constant(EMBEDDING, decoder.embed_tokens.weight.detach().numpy())
    positions = w.constant("positions", decoder.embed_positions.weight.detach().numpy())
    x = w.add("Add", w.add("Gather", embedding, ids), w.add("Gather", positions, places))
    mask = causal_mask(w, places, w.add("Squeeze", until))
    kept: tuple[list[str], list[str]] = ([], [])
    for i, layer in enumerate(decoder.layers):
        name, attention, other = f"layers.{i}", layer.self_attn, layer.encoder_attn
        normed = w.norm(f"{name}.self_norm", layer.self_attn_layer_norm, x)
        query = w.linear(f"{name}.self_q", attention.q_proj, normed)
        so_far = []
        for kind, cache, projection, out in zip("kv", own, (attention.k_proj, attention.v_proj), kept, strict=True):
            past = w.add("Gather", cache, w.constant(f"layer_{i}", np.array(i)))
            new = w.linear(f"{name}.self_{kind}", projection, normed)
            before = w.add("Slice", past, w.integers(0), offset, w.integers(1))
            now = w.add("Concat", before, new, axis=1)
            after = w.add("Slice", past, until, w.integers(context), w.integers(1))
            out.append(w.add("Unsqueeze", w.add("Concat", now, after, axis=1), w.integers(0)))
            so_far.append(now)
        x = w.add(
            "Add", x, w.linear(f"{name}.self_out", attention.out_proj, _attend(w, attention, query, so_far, mask))
        )
        normed = w.norm(f"{name}.cross_norm", layer.encoder_attn_layer_norm, x)
        query = w.linear(f"{name}.cross_q", other.q_proj, normed)
        heard = [w.add("Gather", c, w.constant(f"layer_{i}", np.array(i))) for c in cross]
        x = w.add("Add", x, w.linear(f"{name}.cross_out", other.out_proj, _attend(w, other, query, heard)))
        x = feed_forward(w, name, layer, x)
    last = w.norm("norm", decoder.layer_norm, w.add("Gather", x, w.integers(-1), axis=1))  # [batch, 1, width]
    logits = w.add("MatMul", last, w.add("Transpose", embedding, to=TRANSPOSED, perm=[1, 0]))
    starts = w.add("Equal", offset, w.constant("zero", np.array(0)))
    w.add("Add", logits, suppression(w, starts, config.vocab_size, suppress_tokens, begin_suppress_tokens), to="logits")
    w.output("logits", FLOAT, ["batch", 1, int(config.vocab_size)])
    for kind, parts in zip("kv", kept, strict=True):
        w.add("Concat", *parts, to=f"out_n_layer_self_{kind}_cache", axis=0)
        w.output(f"out_n_layer_self_{kind}_cache", FLOAT, [layers, "batch", context, width])
    return w.model("sherpa_decoder", OPSET)


def sherpa_metadata(family: Whisper) -> dict[str, str]:
    """Metadata that sherpa-onnx reads from the encoder; if any is missing, it exits the process.

    Args:
        family: the checkpoint's configuration and tokens.
    """

    def token(text: str) -> int:
        return cast("int", family.tokenizer.convert_tokens_to_ids(text))  # given a list it would return a list

    config = family.config
    languages: dict[str, int] = family.language_ids
    start = int(config.decoder_start_token_id)
    multilingual = bool(languages)
    known = family.tokenizer.get_vocab()
    no_times = token("<|notimestamps|>")
    task = {name: known.get(f"<|{name}|>", no_times) for name in ("transcribe", "translate")}
    english = languages.get("en", next(iter(languages.values()), 0))
    found: dict[str, int | str | list[int] | list[str]] = {
        "model_type": "whisper",
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_text_layer": config.decoder_layers,
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model,
        "n_vocab": config.vocab_size,
        "sot": start,
        "eot": config.eos_token_id,
        "blank_id": token("Ġ"),
        "is_multilingual": int(multilingual),
        "no_timestamps": no_times,
        "no_speech": known.get("<|nospeech|>", known.get("<|nocaptions|>", no_times)),
        "sot_sequence": [start, english, task["transcribe"]] if multilingual else [start],
        **task,
    }
    if multilingual:
        found["all_language_tokens"] = list(languages.values())
        found["all_language_codes"] = list(languages)
    return {k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in found.items()}


def sherpa_tokens(family: Whisper) -> str:
    """Content of tokens.txt: the bytes of each text token and added word in base64, and its id."""
    import base64

    from export.edge.bundle.tokens import byte_alphabet
    from workbench.models.whisper.loading.tokens import added_words

    alphabet = byte_alphabet()
    end = int(family.config.eos_token_id)
    added = added_words(family.tokenizer)
    pieces = {i: word.encode() for i, word in added.items()}
    for token, i in family.tokenizer.get_vocab().items():
        if i < end and token and i not in added:
            pieces[i] = bytes(alphabet[c] for c in token)
    return "".join(f"{base64.b64encode(piece).decode()} {i}\n" for i, piece in sorted(pieces.items()))


def _attend(w: Writer, attention: DecoderAttention, query: str, kept: list[str], mask: str = "") -> str:
    """`attend` to keys and values in cache layout, [batch, positions, width]."""
    key, value = kept
    return attend(
        w, attention, query, split_heads(w, attention, key, turned=True), split_heads(w, attention, value), mask
    )
