"""What training rounds weights to is what the graphs of a bundle dequantize to, in every scheme; and inputs as ONNX rounds them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import WhisperConfig, WhisperForConditionalGeneration

from export.graphs.ctc import ctc_graph
from export.graphs.encoder import encoder_graph
from export.graphs.step import step_graph
from export.quantization.int8 import Int8Options
from export.quantization.quantize import quantize
from tests.models.ctc_checkpoints import over_whisper, write_checkpoint
from workbench.config.additions import QuantizationRecipe
from workbench.config.schemes import parse_scheme
from workbench.core.errors import UserError
from workbench.models import open_family
from workbench.models.protocol import Tokens
from workbench.models.quantization import rounded_inputs, tied_blocks
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.passes import decoder_logits, encode
from workbench.training.quantization import Quantization

FULL = Int8Options(reduce_range=False)
STEP = {"self_out": "self_attn.out_proj", "cross_q": "encoder_attn.q_proj", "cross_out": "encoder_attn.out_proj", "fc1": "fc1", "fc2": "fc2"}  # fmt: skip
SCHEMES = ["int8", "w8", "q4"]


class Graph:
    """A quantized graph's weights, as a runtime dequantizes them."""

    def __init__(self, path):
        self.model = onnx.load(path)
        self.arrays = {i.name: numpy_helper.to_array(i) for i in self.model.graph.initializer}
        self.half = 0
        for node in self.model.graph.node:  # onnxruntime widens these at load
            if node.op_type == "Cast" and node.name.endswith("_widened"):
                self.arrays[node.output[0]] = self.arrays[node.input[0]].astype(np.float32)
                self.half += "scale" in node.output[0]

    def matrix(self, name):
        """[outputs, inputs] of a product's constant."""
        if name in self.arrays:  # left in fp32
            return self.arrays[name].T
        if f"{name}_quantized" in self.arrays:
            assert not self.arrays[f"{name}_zero_point"].any()
            return (self.arrays[f"{name}_quantized"].astype(np.float32) * self.arrays[f"{name}_scale"]).T
        if f"{name}_int8" in self.arrays:  # the tied embedding, not transposed
            return self.arrays[f"{name}_int8"] * self.arrays[f"{name}_scale"]
        node = next(
            n for n in self.model.graph.node if n.op_type == "MatMulNBits" and n.input[1].startswith(f"{name}_Q")
        )
        bits, inputs = (helper.get_node_attr_value(node, key) for key in ("bits", "K"))
        values, scales = self.arrays[node.input[1]], self.arrays[node.input[2]]
        points = self.arrays[node.input[3]] if len(node.input) > 3 else np.full(scales.shape, 1 << (bits - 1))
        if bits == 4:
            values = np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:2], -1)
            if len(node.input) > 3:
                points = np.stack([points & 15, points >> 4], -1).reshape(len(points), -1)[:, : scales.shape[1]]
        found = (values.astype(np.float32) - points[..., None]) * scales[..., None]
        return found.reshape(len(found), -1)[:, :inputs]


def whisper(layers=2):
    """Wide enough for scales to be stored in fp16, alone or joined, with a last block that is not full."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=1100, d_model=128, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=1040, decoder_ffn_dim=1040, max_target_positions=64, pad_token_id=9, bos_token_id=9, eos_token_id=9,
        decoder_start_token_id=10, suppress_tokens=None, begin_suppress_tokens=None, init_std=0.1,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        norm = model.model.decoder.layer_norm
        norm.weight.copy_(torch.linspace(0.1, 4, 128))
        norm.bias.normal_()
        model.model.encoder.layers[0].fc1.weight[3] = 0
        model.model.decoder.embed_tokens.weight[7] = 0
        model.model.decoder.layers[0].fc1.weight[5] = 0.01  # of one sign
    return model


class Family:
    exported_weights = Whisper.exported_weights


def graphs(model, scheme, folder, options=FULL):
    """The encoder's graph and our own runtime's decoder in a scheme."""
    found = []
    for name, graph in (("encoder.onnx", encoder_graph(model, None)), ("step_decoder.onnx", step_graph(model, [], []))):
        onnx.save(graph, folder / name)
        found.append(quantize(folder / name, parse_scheme(scheme), options))
    return found


def expected(encoder, step, model):
    """What two graphs hold, by parameter."""
    held = {}
    for i in range(2):
        for part in ("q", "k", "v", "out"):
            held[f"model.encoder.layers.{i}.self_attn.{part}_proj.weight"] = encoder.matrix(
                f"layers.{i}.self_{part}.weight"
            )
        for part in ("fc1", "fc2"):
            held[f"model.encoder.layers.{i}.{part}.weight"] = encoder.matrix(f"layers.{i}.{part}.weight")
        for part in "kv":
            held[f"model.decoder.layers.{i}.encoder_attn.{part}_proj.weight"] = encoder.matrix(
                f"cross_{part}.{i}.weight"
            )
        joined = np.split(step.matrix(f"layers.{i}.self_qkv.weight"), 3)
        held |= {
            f"model.decoder.layers.{i}.self_attn.{p}_proj.weight": each for p, each in zip("qkv", joined, strict=True)
        }
        held |= {f"model.decoder.layers.{i}.{ours}.weight": step.matrix(f"layers.{i}.{name}.weight") for name, ours in STEP.items()}  # fmt: skip
    held["model.decoder.embed_tokens.weight"] = step.matrix("embedding")
    return held


@pytest.mark.parametrize(
    ("scheme", "reduced"), [("int8", False), ("int8", True), ("w8", False), ("q4", False), ("q4-1", False)]
)
def test_rounded_weights_are_what_the_graphs_hold(scheme, reduced, tmp_path):
    model = whisper()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    files = graphs(model, scheme, tmp_path, Int8Options(reduce_range=reduced))
    encoder, step = (Graph(file) for file in files)
    assert encoder.half + step.half > 3  # scales in 16 bits are among them
    settings = QuantizationRecipe(encoder=scheme, decoder=scheme, reduce_range=reduced)
    held = expected(encoder, step, model)
    quantization = Quantization(model, Family(), settings)
    with quantization.applied():
        for name, parameter in model.named_parameters():
            now = parameter.detach().numpy()
            if name not in held:  # convolutions, positions, norms, biases
                np.testing.assert_array_equal(now, before[name], err_msg=name)
                continue
            np.testing.assert_array_equal(now, held[name], err_msg=name)
            left = scheme == "q4-1" and ".layers.1." in name and not name.endswith(("encoder_attn.k_proj.weight", "encoder_attn.v_proj.weight"))  # fmt: skip
            assert left == np.array_equal(now, before[name]), name
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["whisper", "wav2vec2", "hubert", "wavlm", "parakeet"])
def test_ctc_models_are_rounded_as_their_graph_is(kind, scheme, tiny_checkpoint, tmp_path):
    folder = tmp_path / kind
    over_whisper(tiny_checkpoint, folder) if kind == "whisper" else write_checkpoint(folder, kind)
    family = open_family(folder)
    model = family.load()
    if kind == "wavlm" and scheme.startswith("int8"):
        with pytest.raises(UserError, match="the inputs of this model's attention cannot be rounded in training"):
            Quantization(model, family, QuantizationRecipe(encoder=scheme))
        return
    onnx.save(ctc_graph(model, family), tmp_path / "model.onnx")
    found = Graph(quantize(tmp_path / "model.onnx", parse_scheme(scheme), FULL))
    names = {"q": "self_q", "k": "self_k", "v": "self_v", "out": "self_out"}
    rounded = 0
    with Quantization(model, family, QuantizationRecipe(encoder=scheme)).applied():
        for name, parameter in model.named_parameters():
            kept = ("embed_positions", "gru_rel_pos", "rel_attn_embed", "self_attn.bias_", "relative_k_proj")
            if (
                (parameter.dim() != 2 and "pointwise" not in name)
                or parameter.dim() == 1
                or any(part in name for part in kept)
            ):
                continue
            ours = name.split(".encoder.")[-1].removeprefix("encoder.")
            for a, b in ((".attention.", "."), (".self_attn.", "."), ("lm_head", "head"), ("feed_forward.intermediate_dense", "fc1"),
                         ("feed_forward.output_dense", "fc2"), (f"{kind}.feature_projection.projection", "projection"),
                         ("feed_forward1.linear", "first.fc"), ("feed_forward2.linear", "last.fc"), ("conv.pointwise_conv1", "conv.first"),
                         ("conv.pointwise_conv2", "conv.last"), (".o_proj.", ".self_out.")):  # fmt: skip
                ours = ours.replace(a, b)
            for a, b in names.items():
                ours = ours.replace(f".{a}_proj.", f".{b}.")
            np.testing.assert_array_equal(parameter.detach().flatten(1).numpy(), found.matrix(ours), err_msg=name)
            rounded += 1
    each = 10 if kind == "parakeet" else 6
    assert rounded == each * family.encoder_depth(model) + (1 if kind == "whisper" else 2)


def in_torch(model, features, ids):
    """Keys and values of cross-attention, and the logits after the last token."""
    attention = model.model.decoder.layers[0].encoder_attn
    with torch.no_grad():
        states = encode(model, features)
        tokens = Tokens(ids, torch.tensor([[-100] * (ids.shape[1] - 1) + [1]]))
        keys, values = attention.k_proj(states).numpy(), attention.v_proj(states).numpy()
        return keys, values, decoder_logits(model, states, tokens)[0].numpy()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_student_computes_in_training_what_its_graphs_will(scheme, tmp_path):
    """Far nearer than the student as it is. What is left is how onnxruntime rounds the inputs of w8 and q4."""
    model = whisper(layers=1)  # in int8 a difference in the last bit grows in each layer to another rounding
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())  # what graphs store in fp16 is exact
    torch.manual_seed(0)
    features, ids = (
        torch.randn(1, 80, 3000),
        torch.tensor([[10]]),
    )  # one token: a decoder's inputs have a range for each
    encoder, step = (ort.InferenceSession(file) for file in graphs(model, scheme, tmp_path))
    plain = in_torch(model, features, ids)
    with Quantization(model, Family(), QuantizationRecipe(encoder=scheme, decoder=scheme)).applied():
        trained = in_torch(model, features, ids)
    empty = np.zeros((1, 64, 128), np.float32)
    given = {
        "input_ids": ids.numpy(),
        "offset": np.zeros(1, np.int64),
        "cross_k.0": trained[0],
        "cross_v.0": trained[1],
    }
    keys, values = encoder.run(["n_layer_cross_k", "n_layer_cross_v"], {"input_features": features.numpy()})
    logits = step.run(["logits"], {**given, "cache_k.0": empty, "cache_v.0": empty})[0]
    for graph, ours, unrounded in zip((keys[0], values[0], logits[0]), trained, plain, strict=True):
        left = np.abs(graph - ours).mean() / np.abs(graph - unrounded).mean()
        assert left < {"int8": 0.05, "w8": 0.9, "q4": 0.15}[scheme], left


@pytest.mark.parametrize("low", [-2.0, 0.5, -9.0])
def test_inputs_are_rounded_as_onnx_rounds_them(low):
    torch.manual_seed(0)
    values = torch.rand(3, 5, 8) * 4 + low
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    session = ort.InferenceSession(model.SerializeToString())

    def onnx_rounds(part):
        return torch.from_numpy(session.run(None, {"x": part.numpy()})[0])

    by_clip = torch.stack([onnx_rounds(clip) for clip in values])
    by_row = torch.stack([torch.stack([onnx_rounds(row) for row in clip]) for clip in values])
    torch.testing.assert_close(rounded_inputs(values, by_row=False), by_clip, atol=1e-6, rtol=0)
    torch.testing.assert_close(rounded_inputs(values, by_row=True), by_row, atol=1e-6, rtol=0)
    torch.testing.assert_close(rounded_inputs(values[0], by_row=False), by_clip[0], atol=1e-6, rtol=0)
    assert not torch.equal(by_clip, by_row)
    assert torch.equal(rounded_inputs(torch.zeros(2, 3), by_row=True), torch.zeros(2, 3))


def test_no_scale_of_the_grid_has_a_smaller_weighted_error():
    """Against all of the grid at once."""
    torch.manual_seed(0)
    rows, importance = torch.randn(40, 64), torch.rand(64)
    values, scales = tied_blocks(rows, 4, importance)
    assert values.abs().max() <= 8

    def error(blocks, wanted):
        return ((blocks - rows.view(40, 2, 32)) ** 2 * importance.view(2, 32)).sum(-1)

    blocks = rows.view(40, 2, 32)
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))[..., 0]
    each = [largest * share / end for end in (-8, 7) for share in torch.linspace(0.6, 1.0, 17)]
    tried = torch.stack([error((blocks / s[..., None]).round().clamp(-8, 7) * s[..., None], rows) for s in each])
    torch.testing.assert_close(error(values * scales[..., None], rows), tried.amin(0), atol=1e-5, rtol=1e-4)
