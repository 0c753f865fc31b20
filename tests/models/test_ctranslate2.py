"""CTranslate2 folders: what a model was, it is again after a conversion there and back."""

import json
import struct

import numpy as np
import pytest
import torch

from tests.fuzzing import fuzz, json_mutations, mutated
from workbench.core.errors import UserError
from workbench.models.resolve import convert, list_teachers, resolve_teacher
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.loading.ctranslate2 import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    INT8,
    is_ctranslate2,
    load_whisper,
    read_tensors,
)


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
    assert Whisper(converted).tokens(["a"], ["es"]).labels[0, -1] == Whisper(converted).eos_token_id


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
    from workbench.models import resolve as teachers

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


def test_a_conversion_that_was_damaged_since_is_refused(folder, cache):
    source = str(folder())
    converted = resolve_teacher(source)
    path = converted / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"model\.safetensors: SHA-256 is .* delete .* and run the same command again"):
        resolve_teacher(source)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_download_does_not_hide_the_other_teachers(cache, tmp_path, monkeypatch, content):
    snapshot = tmp_path / "hub" / "models--someone--whisper-x" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(content)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    rows = {row["name"]: row for row in list_teachers()}
    assert "whisper-base" in rows
    assert "config.json is damaged" in rows[str(snapshot)]["what"]


def test_nothing_is_lost_in_half_precision(folder, cache):
    loaded = Whisper(resolve_teacher(str(folder(FLOAT16)))).load()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in loaded.parameters())


def text(value):
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


HEAD = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<I", 3)


def tensor(name, shape, kind=FLOAT32, size=None, data=b""):
    return text(name) + struct.pack(f"<B{len(shape)}IBI", len(shape), *shape, kind, len(data) if size is None else size) + data  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has 0 bytes"),
        (b"\x06", "cut off"),
        (HEAD[:9], "cut off"),
        (HEAD + struct.pack("<I", 2**32 - 1), "states 4,294,967,295 tensors; expected at most 20,000"),
        (HEAD + struct.pack("<I", 1) + tensor("x", [1] * 200), "has 200 dimensions; expected at most 4"),
        (HEAD + struct.pack("<I", 1) + tensor("x", [2**32 - 1] * 4, size=0), "has 0 bytes, expected"),
        (HEAD + struct.pack("<I", 1) + tensor("x", [2**30], size=2**32 - 1), "expected 4294967296"),
        (HEAD + struct.pack("<I", 1) + tensor("x", [2**29], size=2**31), "cut off"),
        (HEAD + struct.pack("<I", 1) + tensor("x", [1], kind=77, data=b"1234"), "unknown type 77"),
        (HEAD + struct.pack("<I", 2) + 2 * tensor("x", [1], data=b"1234"), "'x' appears twice"),
        (HEAD + struct.pack("<II", 0, 2**31), "states 2,147,483,648 aliases"),
        (HEAD + struct.pack("<II", 0, 1) + text("a") + text("b"), "lacks the tensor 'b'"),
        (HEAD + struct.pack("<II", 0, 0), "lacks the tensor"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a Git LFS pointer"),
    ],
)
def test_counts_and_sizes_beyond_their_bounds_are_refused(folder, content, said):
    path = folder() / "model.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        load_whisper(path.parent)
    assert str(path) in str(error.value)


def replaced(path, **changes):
    """The folder's tensors with others in place of some, None to leave one out, written anew."""
    tensors = {**read_tensors(path), **{name.replace("__", "/"): value for name, value in changes.items()}}
    path.write_bytes(binary({name: value for name, value in tensors.items() if value is not None}, FLOAT32))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder__num_heads": np.zeros(7, np.float32)}, "expected one number"),
        ({"encoder__num_heads": np.float32("nan")}, "encoder_attention_heads is 0"),
        ({"encoder__num_heads": None}, "lacks the tensor 'encoder/num_heads'"),
        ({"decoder__embeddings__weight": np.zeros((300, 9000), np.float32)}, "d_model is 9000; expected"),
        ({"decoder__embeddings__weight": np.zeros(9, np.float32)}, "expected 2 dimensions"),
        ({"encoder__layer_9999__x": np.zeros(1, np.float32)}, "encoder_layers is 10000; expected a whole number from 1 to 128"),
        ({"encoder__layer_0__self_attention__linear_0__weight": np.float32(1)}, "has the shape"),
        ({"encoder__conv2__bias": np.full(32, np.inf, np.float32)}, "holds NaN or infinity"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_whisper_are_refused(folder, changes, said):
    path = folder() / "model.bin"
    replaced(path, **changes)
    with pytest.raises(UserError, match=said):
        load_whisper(path.parent)


def test_a_row_with_many_scales_is_refused_before_it_is_multiplied_out(folder):
    path = folder() / "model.bin"
    data = HEAD + struct.pack("<I", 2)
    data += tensor("w", [1, 50_000], INT8, data=bytes(50_000)) + tensor("w_scale", [50_000], data=np.ones(50_000, "<f4").tobytes())  # fmt: skip
    path.write_bytes(data + struct.pack("<I", 0))
    with pytest.raises(UserError, match="has 50000 scales; expected one per row"):
        load_whisper(path.parent)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", [], "expected a JSON object"),
        ("config.json", {"suppress_ids": [10**9]}, "suppress_tokens is"),
        ("config.json", {"alignment_heads": 3}, "alignment_heads is 3"),
        ("tokenizer.json", {}, "no byte-pair model"),
        ("tokenizer.json", {"model": {"vocab": {}, "merges": [3]}, "added_tokens": []}, "'3' is not a merge"),
        ("tokenizer.json", {"model": {"vocab": {"a": -1}, "merges": []}, "added_tokens": []}, "has the id -1"),
        ("tokenizer.json", {"model": {"vocab": {"a": 1}, "merges": []}, "added_tokens": []}, "lacks the token"),
    ],
)
def test_damaged_settings_and_vocabularies_are_refused(folder, tmp_path, name, content, said):
    source = folder()
    (source / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=said) as error:
        convert(source, tmp_path / "out")
    assert str(source) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_fuzzed_models_are_read_or_refused(folder):
    source = folder(INT8)
    path = source / "model.bin"
    whole = path.read_bytes()

    def check(data):
        path.write_bytes(data)
        load_whisper(source)

    fuzz(mutated([whole], head=600), check, refusals=(UserError,))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_fuzzed_settings_are_read_or_refused(folder, tmp_path, name):
    source = folder()
    original = json.loads((source / name).read_text())

    def check(content):
        (source / name).write_text(json.dumps(content))
        convert(source, tmp_path / "out")

    fuzz(json_mutations(original), check, refusals=(UserError,))
