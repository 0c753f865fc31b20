"""Read a CTranslate2 Whisper folder, which is what faster-whisper users have on disk, into a transformers model.

CTranslate2 stores one binary file: a header, then named tensors, then aliases (its `model_reader`, binary version 6).
Only data is read, with numpy; nothing of CTranslate2 is imported.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from workbench.core.errors import UserError
from workbench.core.files import check_not_lfs_pointer, read_object
from workbench.models.whisper.loading.checkpoint import MAX_PARAMETERS, check_generation, checked_config
from workbench.models.whisper.loading.tokens import END, START, read_tokenizer, special_ids

if TYPE_CHECKING:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

Array: TypeAlias = npt.NDArray[np.floating | np.integer]  # of one of DTYPES
FLOAT32, INT8, INT16, INT32, FLOAT16, BFLOAT16 = range(6)
DTYPES = {FLOAT32: "<f4", INT8: "i1", INT16: "<i2", INT32: "<i4", FLOAT16: "<f2", BFLOAT16: "<u2"}
NEWEST_VERSION = 6
MAX_BYTES = 4 * MAX_PARAMETERS
MAX_TENSORS = 20_000  # Whisper large-v3 has some 1,300
MAX_DIMENSIONS = 4
LAYER = re.compile(r"\w+/layer_(\d{1,4})/")


def is_ctranslate2(folder: Path) -> bool:
    """Whether a folder holds a CTranslate2 model."""
    return (folder / "model.bin").is_file() and (folder / "config.json").is_file()


def read_tensors(path: Path) -> _Tensors:
    """Read model.bin into named arrays: weights as float32, dequantized where they are stored as int8 or int16.

    Raises:
        UserError: the file is not a CTranslate2 Whisper model, of a newer version, cut off, or states counts beyond their bounds.
    """
    check_not_lfs_pointer(path)
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise UserError(f"{path}: has {size:,} bytes; expected a model of at most {MAX_BYTES:,}")
    reader = _Reader(np.memmap(path, np.uint8, "r"), path)  # no byte is in memory before it is used
    version = reader.number("<I")
    if not 2 <= version <= NEWEST_VERSION:
        raise UserError(f"{path}: CTranslate2 binary version {version}; expected 2 to {NEWEST_VERSION}")
    if (name := reader.text()) != "WhisperSpec":
        raise UserError(f"{path}: holds a {name[:60]!r} model; expected WhisperSpec")
    reader.number("<I")  # revision of the spec: names of the tensors used here are the same in all
    stored = _Tensors(path)
    for _ in range(reader.count("tensors")):
        key = reader.text()
        if (rank := reader.number("B")) > MAX_DIMENSIONS:
            raise UserError(f"{path}: tensor {key[:60]!r} has {rank} dimensions; expected at most {MAX_DIMENSIONS}")
        shape = [reader.number("<I") for _ in range(rank)]
        kind = reader.number("B")
        if kind not in DTYPES:
            raise UserError(f"{path}: tensor {key[:60]!r} has the unknown type {kind}; expected 0 to 5")
        if key in stored:
            raise UserError(f"{path}: tensor {key[:60]!r} appears twice; the file is damaged, fetch it again")
        stored[key] = reader.array(DTYPES[kind], shape)
        if kind == BFLOAT16:
            stored[key] = (stored[key].astype("<u4") << 16).view("<f4")
    for _ in range(reader.count("aliases")):
        alias, key = reader.text(), reader.text()
        stored[alias] = stored[key]
    return _Tensors(path, {k: _dequantized(k, stored) for k in stored if not k.endswith("_scale")})


class _Tensors(dict[str, Array]):
    """Arrays by name; one that is missing is a UserError."""

    def __init__(self, path: Path, content: Mapping[str, Array] | None = None) -> None:
        super().__init__(content or {})
        self.path = path

    def __missing__(self, key: str) -> NoReturn:
        raise UserError(f"{self.path}: lacks the tensor {key[:60]!r}; the file is damaged or not a Whisper model")

    def sizes(self, key: str, rank: int) -> tuple[int, ...]:
        """Shape of a tensor that must have a given number of dimensions."""
        if len(shape := self[key].shape) != rank:
            raise UserError(f"{self.path}: tensor {key!r} has the shape {list(shape)}; expected {rank} dimensions")
        return tuple(shape)


def _dequantized(key: str, stored: _Tensors) -> Array:
    value: Array = stored[key]
    scale = stored.get(f"{key}_scale")
    if scale is None:
        return value.astype(np.float32) if value.dtype == np.float16 else value
    # one scale per row for int8, one per tensor for int16; stored = round(weight * scale)
    if scale.size != 1 and (not value.ndim or scale.size != len(value)):
        raise UserError(
            f"{stored.path}: tensor {key[:60]!r} of shape {list(value.shape)} has {scale.size} scales; expected one per row"
        )
    if not (np.isfinite(scale).all() and (scale != 0).all()):
        raise UserError(
            f"{stored.path}: tensor {key[:60]!r} has scales that are zero, NaN or infinite; the file is damaged"
        )
    rows = scale.reshape(-1, *[1] * (value.ndim - 1)) if scale.size != 1 else scale.reshape(())
    divisors: npt.NDArray[np.float32] = rows.astype(np.float32)
    return value.astype(np.float32) / divisors


class _Reader:
    def __init__(self, data: Array, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def _take(self, size: int) -> Array:
        if self.at + size > len(self.data):
            raise UserError(
                f"{self.path}: ends after {len(self.data):,} bytes, inside a tensor; the file is cut off, fetch it again"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> int:
        return int(struct.unpack(code, self._take(struct.calcsize(code)).tobytes())[0])

    def text(self) -> str:
        return self._take(self.number("<H")).tobytes().rstrip(b"\0").decode("utf-8", "replace")

    def array(self, dtype: str, shape: list[int]) -> Array:
        size = self.number("<I")
        expected = math.prod(shape) * np.dtype(dtype).itemsize
        if size != expected:
            raise UserError(
                f"{self.path}: a tensor of shape {shape} has {size} bytes, expected {expected}; the file is damaged"
            )
        return np.frombuffer(self._take(size), dtype).reshape(shape)

    def count(self, what: str) -> int:
        if (found := self.number("<I")) > MAX_TENSORS:
            raise UserError(f"{self.path}: states {found:,} {what}; expected at most {MAX_TENSORS:,}")
        return found


def load_whisper(folder: Path) -> WhisperForConditionalGeneration:
    """Build the transformers model of a CTranslate2 Whisper folder, in fp32, with its generation config.

    Raises:
        UserError: model.bin or config.json cannot be used.
    """
    import torch
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    path = folder / "model.bin"
    tokens = special_ids(read_tokenizer(folder / "tokenizer.json"), folder / "tokenizer.json")
    tensors = read_tensors(path)
    config = whisper_config(tensors, tokens)
    generation = _generation(folder / "config.json", config)
    named = dict(_hugging_face_names(tensors, config))
    named["proj_out.weight"] = named["model.decoder.embed_tokens.weight"]
    with torch.device("meta"):  # shapes are compared before the model takes memory
        model = WhisperForConditionalGeneration(config)
    for name, expected in model.state_dict().items():
        if name not in named:
            raise UserError(f"{path}: lacks {name}; the file is damaged or not a Whisper model")
        if named[name].shape != expected.shape:
            raise UserError(
                f"{path}: {name} has the shape {list(named[name].shape)}, expected {list(expected.shape)}; the file is damaged"
            )
        if not np.isfinite(named[name]).all():
            raise UserError(f"{path}: {name} holds NaN or infinity; the file is damaged, fetch it again")
    model.load_state_dict(
        {name: torch.from_numpy(np.array(value, np.float32)) for name, value in named.items()}, assign=True
    )
    model.tie_weights()
    model.generation_config = GenerationConfig.from_dict({**model.generation_config.to_dict(), **generation})
    model.generation_config._from_model_config = False  # or transformers would derive it again and drop what was read
    loaded: WhisperForConditionalGeneration = model.eval()
    return loaded


def whisper_config(tensors: _Tensors, tokens: Mapping[str, int]) -> WhisperConfig:
    """Read the architecture from the tensors' shapes, and the start and end ids from the tokenizer.

    Raises:
        UserError: the shapes are not a Whisper's, or beyond the bounds of `checked_config`.
    """
    vocabulary, width = tensors.sizes("decoder/embeddings/weight", 2)
    values: dict[str, Any] = {
        "model_type": "whisper",
        "vocab_size": vocabulary,
        "d_model": width,
        "num_mel_bins": tensors.sizes("encoder/conv1/weight", 3)[1],
        "max_source_positions": tensors.sizes("encoder/position_encodings/encodings", 2)[0],
        "max_target_positions": tensors.sizes("decoder/position_encodings/encodings", 2)[0],
        "decoder_start_token_id": tokens[START],
        **dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), tokens[END]),
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
        "architectures": ["WhisperForConditionalGeneration"],
    }
    for side in ("encoder", "decoder"):
        found = [LAYER.match(key) for key in tensors if key.startswith(f"{side}/layer_")]
        values[f"{side}_layers"] = 1 + max((int(match[1]) for match in found if match), default=-1)
        values[f"{side}_ffn_dim"] = tensors.sizes(f"{side}/layer_0/ffn/linear_0/weight", 2)[0]
        if (heads := tensors[f"{side}/num_heads"]).size != 1:
            raise UserError(f"{tensors.path}: {side}/num_heads has the shape {list(heads.shape)}; expected one number")
        values[f"{side}_attention_heads"] = int(heads.reshape(())) if np.isfinite(heads).all() else 0
    return checked_config(values, tensors.path)


def _generation(path: Path, config: WhisperConfig) -> dict[str, object]:
    """What decoding needs of CTranslate2's config.json: suppressed tokens, alignment heads."""
    written = read_object(path, "CTranslate2's config.json")
    content = {
        "suppress_tokens": written.get("suppress_ids") or [],
        "begin_suppress_tokens": written.get("suppress_ids_begin") or [],
        "alignment_heads": written.get("alignment_heads"),
    }
    check_generation(content, config, path)
    return {**content, "max_length": config.max_target_positions, "return_timestamps": False}


def _hugging_face_names(tensors: _Tensors, config: WhisperConfig) -> list[tuple[str, Array]]:
    out: list[tuple[str, Array]] = []
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


def _linear(tensors: _Tensors, source: str, target: str) -> list[tuple[str, Array]]:
    return [(f"{target}.{part}", tensors[f"{source}/{part}"]) for part in ("weight", "bias")]


def _norm(tensors: _Tensors, source: str, target: str) -> list[tuple[str, Array]]:
    return [(f"{target}.weight", tensors[f"{source}/gamma"]), (f"{target}.bias", tensors[f"{source}/beta"])]


def _split(tensors: _Tensors, source: str, target: str, names: str, width: int) -> list[tuple[str, Array]]:
    """Undo CTranslate2's fusion of projections into one; Whisper's key projection has no bias, stored as zeros."""
    out = []
    for i, name in enumerate(names):
        part = slice(i * width, (i + 1) * width)
        out.append((f"{target}.{name}_proj.weight", np.atleast_1d(tensors[f"{source}/weight"])[part]))
        if name != "k":
            out.append((f"{target}.{name}_proj.bias", np.atleast_1d(tensors[f"{source}/bias"])[part]))
    return out


def _self_attention(tensors: _Tensors, source: str, target: str, width: int) -> list[tuple[str, Array]]:
    return [
        *_norm(tensors, f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm"),
        *_split(tensors, f"{source}/self_attention/linear_0", f"{target}.self_attn", "qkv", width),
        *_linear(tensors, f"{source}/self_attention/linear_1", f"{target}.self_attn.out_proj"),
    ]


def _cross_attention(tensors: _Tensors, source: str, target: str, width: int) -> list[tuple[str, Array]]:
    return [
        *_norm(tensors, f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm"),
        *_linear(tensors, f"{source}/attention/linear_0", f"{target}.encoder_attn.q_proj"),
        *_split(tensors, f"{source}/attention/linear_1", f"{target}.encoder_attn", "kv", width),
        *_linear(tensors, f"{source}/attention/linear_2", f"{target}.encoder_attn.out_proj"),
    ]
