"""Read a CTranslate2 Whisper folder, which is what faster-whisper users have on disk, into a transformers model.

CTranslate2 stores one binary file: a header, then named tensors, then aliases (its `model_reader`, binary version 6).
Only data is read, with numpy; nothing of CTranslate2 is imported.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import UserError
from workbench.files import read_json

if TYPE_CHECKING:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

FLOAT32, INT8, INT16, INT32, FLOAT16, BFLOAT16 = range(6)
DTYPES = {FLOAT32: "<f4", INT8: "i1", INT16: "<i2", INT32: "<i4", FLOAT16: "<f2", BFLOAT16: "<u2"}
NEWEST_VERSION = 6


def is_ctranslate2(folder: Path) -> bool:
    """Whether a folder holds a CTranslate2 model."""
    return (folder / "model.bin").is_file() and (folder / "config.json").is_file()


def read_tensors(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read model.bin into named arrays: weights as float32, dequantized where they are stored as int8 or int16.

    Raises:
        UserError: the file is not a CTranslate2 Whisper model, of a newer version, or cut off.
    """
    data = memoryview(path.read_bytes())
    reader = _Reader(data, path)
    version = reader.number("<I")
    if not 2 <= version <= NEWEST_VERSION:
        raise UserError(f"{path}: CTranslate2 binary version {version}; expected 2 to {NEWEST_VERSION}")
    if (name := reader.text()) != "WhisperSpec":
        raise UserError(f"{path}: holds a {name!r} model; expected WhisperSpec")
    reader.number("<I")  # revision of the spec: names of the tensors used here are the same in all
    stored: dict[str, np.ndarray[Any, Any]] = {}
    for _ in range(reader.number("<I")):
        key = reader.text()
        shape = [reader.number("<I") for _ in range(reader.number("B"))]
        kind = reader.number("B")
        if kind not in DTYPES:
            raise UserError(f"{path}: tensor {key!r} has the unknown type {kind}; expected 0 to 5")
        stored[key] = reader.array(DTYPES[kind], shape)
        if kind == BFLOAT16:
            stored[key] = (stored[key].astype("<u4") << 16).view("<f4")
    for _ in range(reader.number("<I")):
        alias, key = reader.text(), reader.text()
        stored[alias] = stored[key]
    return {k: _dequantized(k, stored) for k in stored if not k.endswith("_scale")}


def _dequantized(key: str, stored: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    value, scale = stored[key], stored.get(f"{key}_scale")
    if scale is None:
        return value.astype(np.float32) if value.dtype == np.float16 else value
    # one scale a row for int8, one for the whole tensor for int16; stored = round(weight * scale)
    rows = scale.reshape(-1, *[1] * (value.ndim - 1)) if scale.ndim else scale
    dequantized: np.ndarray[Any, Any] = value.astype(np.float32) / rows.astype(np.float32)
    return dequantized


class _Reader:
    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def _take(self, size: int) -> memoryview:
        if self.at + size > len(self.data):
            raise UserError(
                f"{self.path}: ends after {len(self.data):,} bytes, inside a tensor; the file is cut off, fetch it again"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> int:
        return int(struct.unpack(code, self._take(struct.calcsize(code)))[0])

    def text(self) -> str:
        return bytes(self._take(self.number("<H"))).rstrip(b"\0").decode("utf-8", "replace")

    def array(self, dtype: str, shape: list[int]) -> np.ndarray[Any, Any]:
        size = self.number("<I")
        expected = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if size != expected:
            raise UserError(
                f"{self.path}: a tensor of shape {shape} has {size} bytes, expected {expected}; the file is damaged"
            )
        return np.frombuffer(self._take(size), dtype).reshape(shape)


def load_whisper(folder: Path) -> WhisperForConditionalGeneration:
    """Build the transformers model of a CTranslate2 Whisper folder, in fp32, with its generation config.

    Raises:
        UserError: model.bin or config.json cannot be used.
    """
    import torch
    from transformers import WhisperForConditionalGeneration

    tensors = read_tensors(folder / "model.bin")
    config = whisper_config(tensors, _special_ids(folder / "tokenizer.json"))
    model = WhisperForConditionalGeneration(config)
    state = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in _hugging_face_names(tensors, config)}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    missing = model.load_state_dict(state, strict=False)
    if missing.missing_keys or missing.unexpected_keys:
        raise UserError(
            f"{folder / 'model.bin'}: lacks {missing.missing_keys[:3]}, or has unknown {missing.unexpected_keys[:3]}"
        )
    _set_generation(model, folder / "config.json")
    return model.eval()


def _special_ids(path: Path) -> dict[str, int]:
    if not path.is_file():
        raise UserError(
            f"{path.parent}: no tokenizer.json beside model.bin; copy the one of the original checkpoint there"
        )
    return {token["content"]: token["id"] for token in read_json(path, "a tokenizer")["added_tokens"]}


def whisper_config(tensors: dict[str, np.ndarray[Any, Any]], special_ids: dict[str, int]) -> WhisperConfig:
    """Read the architecture off the shapes of the tensors, and the ids of start and end off the tokenizer's."""
    from transformers import WhisperConfig

    layers = {
        side: 1
        + max(
            int(k.split("/")[1].removeprefix("layer_"))
            for k in tensors
            if k.startswith(f"{side}/layer_") and k[14].isdigit()
        )
        for side in ("encoder", "decoder")
    }
    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    heads = int(tensors["encoder/num_heads"]), int(tensors["decoder/num_heads"])
    feed_forward = tensors["encoder/layer_0/ffn/linear_0/weight"].shape[0]
    start, end = special_ids["<|startoftranscript|>"], special_ids["<|endoftext|>"]
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=heads[0],
        decoder_attention_heads=heads[1],
        encoder_ffn_dim=feed_forward,
        decoder_ffn_dim=tensors["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=tensors["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=tensors["decoder/position_encodings/encodings"].shape[0],
        decoder_start_token_id=start,
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        architectures=["WhisperForConditionalGeneration"],
    )


def _hugging_face_names(
    tensors: dict[str, np.ndarray[Any, Any]], config: WhisperConfig
) -> list[tuple[str, np.ndarray[Any, Any]]]:
    out: list[tuple[str, np.ndarray[Any, Any]]] = []
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        root = f"model.{side}"
        out.append((f"{root}.embed_positions.weight", tensors[f"{side}/position_encodings/encodings"]))
        out += _norm(tensors, f"{side}/layer_norm", f"{root}.layer_norm")
        for i in range(layers):
            source, target = f"{side}/layer_{i}", f"{root}.layers.{i}"
            out += _self_attention(tensors, source, target, config.d_model)
            out += _norm(tensors, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
            for j in (0, 1):
                out += _linear(tensors, f"{source}/ffn/linear_{j}", f"{target}.fc{j + 1}")
            if side == "decoder":
                out += _cross_attention(tensors, source, target, config.d_model)
    for i in (1, 2):
        out += _linear(tensors, f"encoder/conv{i}", f"model.encoder.conv{i}")
    return [*out, ("model.decoder.embed_tokens.weight", tensors["decoder/embeddings/weight"])]


def _linear(
    tensors: dict[str, np.ndarray[Any, Any]], source: str, target: str
) -> list[tuple[str, np.ndarray[Any, Any]]]:
    return [(f"{target}.{part}", tensors[f"{source}/{part}"]) for part in ("weight", "bias")]


def _norm(tensors: dict[str, np.ndarray[Any, Any]], source: str, target: str) -> list[tuple[str, np.ndarray[Any, Any]]]:
    return [(f"{target}.weight", tensors[f"{source}/gamma"]), (f"{target}.bias", tensors[f"{source}/beta"])]


def _split(
    tensors: dict[str, np.ndarray[Any, Any]], source: str, target: str, names: str, width: int
) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Undo CTranslate2's fusion of projections into one; Whisper's key projection has no bias, stored as zeros."""
    out = []
    for i, name in enumerate(names):
        part = slice(i * width, (i + 1) * width)
        out.append((f"{target}.{name}_proj.weight", tensors[f"{source}/weight"][part]))
        if name != "k":
            out.append((f"{target}.{name}_proj.bias", tensors[f"{source}/bias"][part]))
    return out


def _self_attention(
    tensors: dict[str, np.ndarray[Any, Any]], source: str, target: str, width: int
) -> list[tuple[str, np.ndarray[Any, Any]]]:
    return [
        *_norm(tensors, f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm"),
        *_split(tensors, f"{source}/self_attention/linear_0", f"{target}.self_attn", "qkv", width),
        *_linear(tensors, f"{source}/self_attention/linear_1", f"{target}.self_attn.out_proj"),
    ]


def _cross_attention(
    tensors: dict[str, np.ndarray[Any, Any]], source: str, target: str, width: int
) -> list[tuple[str, np.ndarray[Any, Any]]]:
    return [
        *_norm(tensors, f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm"),
        *_linear(tensors, f"{source}/attention/linear_0", f"{target}.encoder_attn.q_proj"),
        *_split(tensors, f"{source}/attention/linear_1", f"{target}.encoder_attn", "kv", width),
        *_linear(tensors, f"{source}/attention/linear_2", f"{target}.encoder_attn.out_proj"),
    ]


def _set_generation(model: WhisperForConditionalGeneration, path: Path) -> None:
    """Carry over what decoding needs: suppressed tokens, alignment heads, language ids."""
    written = read_json(path, "CTranslate2's config.json")
    generation = model.generation_config
    generation._from_model_config = False  # else transformers derives it anew and drops what follows
    generation.suppress_tokens = written.get("suppress_ids") or []
    generation.begin_suppress_tokens = written.get("suppress_ids_begin") or []
    generation.alignment_heads = written.get("alignment_heads")
    generation.max_length = model.config.max_target_positions
    generation.return_timestamps = False
