"""Graphs that not every runtime would read are refused, each defect by name."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graphs.lint import lint, lint_graphs
from workbench.core.errors import UserError


def test_what_is_exported_keeps_to_the_rules(exported):
    lint_graphs(exported / "onnx")
    assert len([p for p in (exported / "onnx").glob("*.onnx") if "detector" not in p.name]) == 9


@pytest.fixture
def damaged(exported, tmp_path):
    def damage(name, change):
        model = onnx.load(exported / "onnx" / name)
        change(model)
        onnx.save(model, tmp_path / name)
        return lint(tmp_path / name)

    return damage


def test_an_axis_that_is_fixed(damaged):
    def fix(model):
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 3000

    assert damaged("encoder_model_quantized.onnx", fix) == ["axis 2 of input_features is fixed at 3000"]


def test_an_opset_above_the_runtimes(damaged):
    def raise_opset(model):
        model.opset_import[0].version = 18

    assert damaged("sherpa_decoder.onnx", raise_opset) == ["opset 18, above 17"]


def test_operators_types_and_names_of_ones_own(damaged):
    def change(model):
        model.opset_import.append(helper.make_opsetid("my.domain", 1))
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(2), "wide"))

    assert damaged("step_decoder.onnx", change) == ["operators of my.domain", "64-bit floats (wide)"]

    def rename(model):
        model.graph.input[0].name = "audio"
        for node in model.graph.node:
            node.input[:] = ["audio" if name == "waves" else name for name in node.input]

    assert damaged("frontend.onnx", rename) == ["no waves"]


def test_scores_that_the_cuda_provider_has_not(damaged):
    def change(model):
        node = next(n for n in model.graph.node if n.op_type == "Attention")
        node.attribute.append(helper.make_attribute("qk_matmul_output_mode", 3))

    assert damaged("step_decoder.onnx", change) == [
        "Attention's scores in mode 3, which the CUDA provider does not support"
    ]


def test_a_graph_that_is_none_is_one_line(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Nothing", ["a"], ["b"])], "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [1])], [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "encoder_model.onnx")
    with pytest.raises(UserError, match=r"encoder_model.onnx: not valid"):
        lint_graphs(tmp_path)
