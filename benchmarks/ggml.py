"""Write a transformers Whisper checkpoint as the one file that whisper.cpp reads: its ggml format, fp16 weights.

Written from the format's description: a magic number, eleven sizes, the mel filters, the tokens, then named tensors.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from export.edge.bundle.tokens import byte_alphabet
from workbench.models.whisper.family import Whisper

MAGIC, FP32, FP16 = 0x67676D6C, 0, 1
PARTS = {
    "self_attn.k_proj": "attn.key", "self_attn.q_proj": "attn.query", "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out", "self_attn_layer_norm": "attn_ln", "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.q_proj": "cross_attn.query", "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out", "encoder_attn_layer_norm": "cross_attn_ln", "fc1": "mlp.0", "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln", "embed_tokens": "token_embedding",
}  # fmt: skip
WHOLE = {
    "encoder.embed_positions.weight": "encoder.positional_embedding", "encoder.layer_norm": "encoder.ln_post",
    "decoder.embed_positions.weight": "decoder.positional_embedding", "decoder.layer_norm": "decoder.ln",
}  # fmt: skip
KEPT_FP32 = ("positional_embedding", "conv1.bias", "conv2.bias")  # whisper.cpp adds these without converting them


def write_ggml(checkpoint: Path, path: Path) -> Path:
    """Write a checkpoint folder's model to a file; returns its path."""
    family = Whisper(checkpoint)
    config, model = family.config, family.load()
    text = {i: token for token, i in family.tokenizer.get_vocab().items() if i < family.eos_token_id}
    alphabet = byte_alphabet()
    filters = _filters(checkpoint)
    with path.open("wb") as file:
        _integers(
            file, MAGIC, config.vocab_size, config.max_source_positions, config.d_model, config.encoder_attention_heads,
            config.encoder_layers, config.max_target_positions, config.d_model, config.decoder_attention_heads,
            config.decoder_layers, config.num_mel_bins, FP16,
        )  # fmt: skip
        _integers(file, *filters.shape)
        file.write(np.ascontiguousarray(filters, "<f4").tobytes())
        _integers(file, len(text))
        for i in range(len(text)):
            spoken = bytes(alphabet[c] for c in text[i])
            _integers(file, len(spoken))
            file.write(spoken)
        for name, tensor in model.model.state_dict().items():
            _tensor(file, openai_name(name), tensor.numpy())
    return path


def openai_name(name: str) -> str:
    """OpenAI's name, which whisper.cpp goes by, of one of transformers' tensors."""
    for theirs, ours in WHOLE.items():
        name = name.replace(theirs, ours)
    for theirs, ours in PARTS.items():
        name = name.replace(f".{theirs}.", f".{ours}.")
    return name.replace(".layers.", ".blocks.")


def _tensor(file: BinaryIO, name: str, values: Any) -> None:
    if name.endswith(("conv1.bias", "conv2.bias")):
        values = values.reshape(-1, 1)
    half = values.ndim > 1 and not name.endswith(KEPT_FP32)
    _integers(file, values.ndim, len(name), FP16 if half else FP32, *reversed(values.shape))
    file.write(name.encode())
    file.write(np.ascontiguousarray(values, "<f2" if half else "<f4").tobytes())


def _filters(checkpoint: Path) -> Any:
    """Mel filters. -> [mels, frequencies]"""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor.from_pretrained(checkpoint).mel_filters.T


def _integers(file: BinaryIO, *values: int) -> None:
    file.write(struct.pack(f"<{len(values)}I", *values))
