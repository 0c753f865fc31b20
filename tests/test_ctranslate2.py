"""CTranslate2 folders: what a model was, it is again after a conversion there and back."""

import json
import struct

import numpy as np
import pytest
import torch

from workbench.ctranslate2 import BFLOAT16, FLOAT16, FLOAT32, INT8, is_ctranslate2, load_whisper
from workbench.errors import UserError
from workbench.families.whisper import Whisper
from workbench.teachers import convert, resolve_teacher


def write_model(path, model, kind):
    """The inverse of the reader, for tests: fuses the projections and writes the binary format."""
    state = {k: v.float().numpy() for k, v in model.state_dict().items()}
    out = {}
    for side in ("encoder", "decoder"):
        root = f"model.{side}"
        out[f"{side}/num_heads"] = np.int16(getattr(model.config, f"{side}_attention_heads"))
        out[f"{side}/position_encodings/encodings"] = state[f"{root}.embed_positions.weight"]
        norm(out, state, f"{side}/layer_norm", f"{root}.layer_norm")
        for i in range(getattr(model.config, f"{side}_layers")):
            source, target = f"{root}.layers.{i}", f"{side}/layer_{i}"
            attention(out, state, f"{source}.self_attn", f"{target}/self_attention", ["qkv"])
            norm(out, state, f"{target}/self_attention/layer_norm", f"{source}.self_attn_layer_norm")
            if side == "decoder":
                attention(out, state, f"{source}.encoder_attn", f"{target}/attention", ["q", "kv"])
                norm(out, state, f"{target}/attention/layer_norm", f"{source}.encoder_attn_layer_norm")
            norm(out, state, f"{target}/ffn/layer_norm", f"{source}.final_layer_norm")
            for j in (0, 1):
                linear(out, state, f"{target}/ffn/linear_{j}", f"{source}.fc{j + 1}")
    for i in (1, 2):
        linear(out, state, f"encoder/conv{i}", f"model.encoder.conv{i}")
    out["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    path.write_bytes(binary(out, kind))


def norm(out, state, target, source):
    out[f"{target}/gamma"], out[f"{target}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]


def linear(out, state, target, source):
    out[f"{target}/weight"], out[f"{target}/bias"] = state[f"{source}.weight"], state[f"{source}.bias"]


def attention(out, state, source, target, groups):
    for i, names in enumerate(groups):
        out[f"{target}/linear_{i}/weight"] = np.concatenate([state[f"{source}.{n}_proj.weight"] for n in names])
        biases = [
            state.get(f"{source}.{n}_proj.bias", np.zeros(len(state[f"{source}.q_proj.bias"]), np.float32))
            for n in names
        ]
        out[f"{target}/linear_{i}/bias"] = np.concatenate(biases)
    linear(out, state, f"{target}/linear_{len(groups)}", f"{source}.out_proj")


def binary(tensors, kind):
    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    stored = {}
    for name, value in tensors.items():
        array = np.asarray(value)
        if array.dtype != np.float32:
            stored[name] = (2, array.astype("<i2"))
        elif kind == INT8 and name.endswith("weight") and array.ndim == 2:
            scale = 127 / np.maximum(np.abs(array).max(1), 1e-9)
            stored[name] = (INT8, np.round(array * scale[:, None]).astype("i1"))
            stored[f"{name}_scale"] = (FLOAT32, scale.astype("<f4"))
        elif kind == FLOAT16:
            stored[name] = (FLOAT16, array.astype("<f2"))
        elif kind == BFLOAT16:
            stored[name] = (BFLOAT16, (array.view("<u4") >> 16).astype("<u2"))
        else:
            stored[name] = (FLOAT32, array.astype("<f4"))
    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(stored))
    for name, (code, array) in stored.items():
        shape = array.shape
        out += text(name) + struct.pack("B", len(shape)) + struct.pack(f"<{len(shape)}I", *shape)
        out += struct.pack("<BI", code, array.nbytes) + np.ascontiguousarray(array).tobytes()
    return out + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    def make(kind=FLOAT32):
        path = tmp_path / "ct2"
        path.mkdir(exist_ok=True)
        write_model(path / "model.bin", Whisper(tiny_checkpoint).load(), kind)
        (path / "config.json").write_text(
            json.dumps({"suppress_ids": [3], "suppress_ids_begin": [5], "alignment_heads": [[1, 0]]})
        )
        (path / "tokenizer.json").write_bytes((tiny_checkpoint / "tokenizer.json").read_bytes())
        return path

    return make


@pytest.mark.parametrize(("kind", "tolerance"), [(FLOAT32, 0), (FLOAT16, 2e-3), (BFLOAT16, 1e-2), (INT8, 2e-2)])
def test_weights_come_back(folder, tiny_checkpoint, kind, tolerance):
    found, expected = load_whisper(folder(kind)), Whisper(tiny_checkpoint).load()
    assert found.config.encoder_layers == 3
    assert found.generation_config.suppress_tokens == [3]
    for (name, a), b in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item()), name


def test_a_ctranslate2_folder_becomes_a_checkpoint_once(folder, cache):
    source = folder(FLOAT16)
    assert is_ctranslate2(source)
    converted = resolve_teacher(str(source))
    stamp = (converted / "model.safetensors").stat().st_mtime_ns
    assert resolve_teacher(str(source)) == converted
    assert (converted / "model.safetensors").stat().st_mtime_ns == stamp
    assert Whisper(converted).tokens(["a"], ["es"]).labels[0, -1] == Whisper(converted).end


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda b: b[: len(b) // 2], "cut off"),
        (lambda b: b"\x09\0\0\0" + b[4:], "binary version 9"),
        (lambda b: b.replace(b"WhisperSpec", b"MarianSpec_"), "expected WhisperSpec"),
    ],
)
def test_damaged_files_are_named(folder, damage, said):
    path = folder() / "model.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=said) as error:
        load_whisper(path.parent)
    assert str(path) in str(error.value)


def test_a_folder_without_a_tokenizer_is_refused_and_nothing_is_left(folder, tmp_path):
    source = folder()
    (source / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_converted_teacher_whose_file_was_damaged_is_refused(folder, cache, monkeypatch):
    from workbench import teachers

    monkeypatch.setitem(teachers.BUILT_IN, "tiny", teachers.BuiltIn("", 0, "", "", ()))
    converted = convert(folder(), cache / "teachers" / "tiny")
    assert resolve_teacher("tiny") == converted
    weights = converted / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"model\.safetensors.*delete"):
        resolve_teacher("tiny")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "whisper-bas"])
def test_unknown_teachers_are_named(name, cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"nowhere|whisper-bas"):
        resolve_teacher(name)


def test_nothing_is_lost_in_half_precision(folder, cache):
    loaded = Whisper(resolve_teacher(str(folder(FLOAT16)))).load()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in loaded.parameters())
