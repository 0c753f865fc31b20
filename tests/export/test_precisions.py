"""Precisions: their names, what they do to weights, and a bundle in each of them."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.assembly.build import export_bundle
from export.bundle.manifest import open_manifest, size_mb
from export.edge import Recognizer
from export.graphs.edit import tied_transpose
from export.graphs.names import DECODER, SHERPA, STEP
from export.quantization.int8 import Int8Options
from export.quantization.precisions import Precision, parse_precision, parse_precisions
from export.quantization.weight_only import _importance, pack
from export.verification.verify import verify_bundle
from tests.conftest import tone
from workbench.config.schemes import Scheme
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.models.quantization import BLOCK

INT8, FP32 = Scheme("int8"), Scheme("fp32")
ALL = ["fp32", "fp16", "w8", "q4", "fp32/int8", "int8_static/int8", "int8-1/w8"]


def test_a_precision_is_a_scheme_or_two():
    assert parse_precision("int8") == Precision(INT8, INT8)
    assert parse_precision("fp32/int8") == Precision(FP32, INT8)
    assert parse_precision("int8-5-0-5/q4").encoder == Scheme("int8", (0, 5))
    assert [parse_precision(name).name for name in ("int8/int8", "int8-5-0/q4")] == ["int8", "int8-0-5/q4"]
    assert Scheme("int8", (0, 5)).file("encoder_model.onnx") == "encoder_model_quantized_but_0_5.onnx"
    assert [p.name for p in parse_precisions(["fp32", "int8", "fp32/fp32"])] == ["fp32", "int8"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("int9", "did you mean 'int8'"), ("int4", "its name here is 'q4'"), ("fp32/int8_static", "try fp32/int8"), ("a/b/c", "expected one scheme"),
     ("fp32-3", "numbers of layers"), ("int8-x", "numbers of layers"), ("fp32/nit8", "'nit8'")],
)  # fmt: skip
def test_what_is_no_precision_is_told(name, said):
    with pytest.raises(UserError, match=said):
        parse_precision(name)


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_rows_multiply_as_onnxruntime_reads_them(bits, tmp_path):
    import onnxruntime as ort

    generator = np.random.default_rng(0)
    rows, x = (generator.normal(0, 1, shape).astype(np.float32) for shape in ((7, 2 * BLOCK), (3, 2 * BLOCK)))
    packed, scales = pack(rows, bits)
    unpacked = _unpacked(packed, scales, bits)
    if bits == 8:
        assert np.abs(unpacked - rows).max() <= scales.max() / 2 + 1e-6  # half a step
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=2 * BLOCK, N=7, bits=bits, block_size=BLOCK
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", 1, [3, 2 * BLOCK])],
        [helper.make_tensor_value_info("y", 1, [3, 7])],
        [numpy_helper.from_array(packed, "b"), numpy_helper.from_array(scales, "s")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    session = ort.InferenceSession(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ unpacked.T, rtol=1e-3, atol=1e-3)


def _unpacked(packed, scales, bits):
    values = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1, BLOCK)
    return ((values.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]).reshape(len(packed), -1)


def test_four_bits_differ_least_where_it_counts():
    """Against plain rounding to -7 to 7 of a block's largest weight, and with inputs of very different size."""
    generator = np.random.default_rng(0)
    rows = generator.standard_t(3, (300, 4 * BLOCK)).astype(np.float32)
    importance = np.exp(generator.normal(0, 2, rows.shape[1])).astype(np.float32)
    blocks = rows.reshape(300, 4, BLOCK)
    plain = np.abs(blocks).max(2, keepdims=True) / 7
    before = (np.round(blocks / plain) * plain).reshape(rows.shape)
    even, weighted = (_unpacked(*pack(rows, 4, given), 4) for given in (None, importance))

    def difference(found, of=1.0):
        return (of * (found - rows) ** 2).sum(1)

    assert (difference(even) <= difference(before)).all()
    assert difference(even).mean() < 0.8 * difference(before).mean()
    assert (difference(weighted, importance) <= difference(even, importance) * (1 + 1e-5)).all()
    assert difference(weighted, importance).mean() < 0.95 * difference(even, importance).mean()
    assert (pack(np.zeros((2, BLOCK), np.float32), 4)[0] == 0x88).all()


def test_the_norm_before_a_projection_says_what_counts(exported, student):
    from workbench.models.whisper.family import Whisper

    norm = Whisper(student).load().model.decoder.layer_norm
    expected = (norm.weight**2 + norm.bias**2).detach().numpy()
    for name in (STEP, SHERPA, DECODER):
        graph = onnx.load(exported / "onnx" / name)
        np.testing.assert_allclose(_importance(graph, tied_transpose(graph).output[0]), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def bundle(student, tmp_path_factory):
    clips = [u.wave() for u in open_corpus("prompts-en", "train", 4)]
    folder = tmp_path_factory.mktemp("precisions") / "tiny"
    return export_bundle(student, folder, ALL, "tiny", options=Int8Options(symmetric=True), calibration=clips)


def test_every_precision_is_exported_compared_and_transcribes(bundle):
    manifest = open_manifest(bundle, check=True)
    assert manifest.precisions == ALL
    worst = {
        name: max(v for k, v in found.items() if k != "padding") for name, found in manifest.content["parity"].items()
    }
    assert worst["fp32"] < 2e-3
    assert worst["fp16"] < 0.02
    assert worst["w8"] < 0.1
    assert all(np.isfinite(value) for value in worst.values())
    for name in ALL:
        assert Recognizer(bundle, name, 1, vad=False).transcribe(tone(1.0)).tokens
    sizes = {name: size_mb(manifest, name) for name in ALL}
    assert sizes["q4"] < sizes["w8"] < sizes["fp32"]
    assert max(sizes["fp16"], sizes["fp32/int8"]) < sizes["fp32"]


def test_an_embedding_is_stored_once_in_blocks(bundle):
    for name in ("decoder_model_merged", "step_decoder", "sherpa_decoder"):
        for suffix in ("w8", "q4"):
            weights = onnx.load(bundle / "onnx" / f"{name}_{suffix}.onnx").graph.initializer
            assert sum(263 in w.dims and len(w.dims) > 2 for w in weights) == 1
            assert not any(list(w.dims) in ([263, 32], [32, 263]) for w in weights)


def test_layers_can_stay_in_fp32(bundle):
    def products(name):
        return [n.op_type for n in onnx.load(bundle / "onnx" / name).graph.node].count("MatMul")

    # of three layers with six weights each one stays, and so do the products of queries with keys and with values
    left = products("encoder_model.onnx") - products("encoder_model_quantized_but_1.onnx")
    assert left == 2 * 6 + 3 * 2  # the other layers', and the decoder's keys and values


def test_a_layer_that_is_not_there_is_told(student, tmp_path):
    with pytest.raises(UserError, match="has no layer 9"):
        export_bundle(student, tmp_path / "b", ["int8-9/int8"])
    assert not (tmp_path / "b").exists()


def test_static_int8_wants_clips(student, tmp_path):
    with pytest.raises(UserError, match="name a corpus with --corpus"):
        export_bundle(student, tmp_path / "b", ["int8_static/int8"])


def test_other_options_are_another_bundle(student, bundle):
    with pytest.raises(UserError, match="options"):
        export_bundle(student, bundle, ALL, "tiny")


@pytest.mark.slow
def test_every_runtime_loads_every_precision(bundle, student):
    # onnx-asr writes up to 448 tokens, more than the tiny model's context holds; the real Whisper base has it
    clients = ("optimum", "sherpa_onnx", "transformers_js")
    found = verify_bundle(bundle, student, open_corpus("prompts-en", "validation", 1), "one clip", clients)
    errors = {(c["client"], c["precision"]): c["error"] for c in found["clients"] if c["error"]}
    assert not errors


@pytest.mark.slow
def test_what_is_not_quantized_is_stored_in_half(student, tmp_path, monkeypatch):
    """Convolutions, positions and scales, in every scheme but fp32 and fp16; what the graphs put out hardly moves."""
    whole = tmp_path / "whole"
    with monkeypatch.context() as patched:
        patched.setattr("export.quantization.quantize.store_in_half", lambda _: 0)
        export_bundle(student, whole, ["int8", "q4"], "tiny")
    halved = export_bundle(student, tmp_path / "halved", ["int8", "q4"], "tiny")
    for path in sorted((halved / "onnx").glob("*_quantized.onnx")) + sorted((halved / "onnx").glob("*_q4.onnx")):
        model, before = onnx.load(path), onnx.load(whole / "onnx" / path.name)
        assert path.stat().st_size < (whole / "onnx" / path.name).stat().st_size
        products = {name for node in model.graph.node if node.op_type == "MatMul" for name in node.input}
        large = [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT and i.ByteSize() > 4096]
        assert {i.name for i in large} <= products
        assert sum(i.data_type == onnx.TensorProto.FLOAT16 for i in model.graph.initializer) > 0
        assert not any(i.data_type == onnx.TensorProto.FLOAT16 for i in before.graph.initializer)
    wave = tone(1.0)
    for precision in ("int8", "q4"):
        expected, found = (
            (r := Recognizer(b, precision, vad=False)).model.first_logits(r.model.cross_kv([wave]), "en")
            for b in (whole, halved)
        )
        assert np.abs(found - expected)[expected > -1e3].max() < 0.05 * np.abs(expected[expected > -1e3]).max()
