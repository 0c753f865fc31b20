"""Write an ONNX graph node by node: names, constants and shapes in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor, nn

from workbench.models.whisper.low_rank import LowRank

BOOL, FLOAT, INT64 = TensorProto.BOOL, TensorProto.FLOAT, TensorProto.INT64
Axes = Sequence[int | str]
Attribute = int | float | str | Sequence[int] | TensorProto | GraphProto  # of a node


class Writer:
    """A graph being written; every method returns the name of what it adds.

    Args:
        begin: prefix of the names of computed tensors, which must be unique across branches.
    """

    def __init__(self, begin: str = "") -> None:
        self.begin = begin
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, TensorProto] = {}
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []

    def input(self, name: str, kind: int, axes: Axes) -> str:
        """Add an input, its axes fixed or named."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(axes)))
        return name

    def optional_input(self, name: str, default: npt.NDArray[np.generic]) -> str:
        """Add an input that callers may leave out: its default is stored as a weight of its name."""
        self.input(name, helper.np_dtype_to_tensor_dtype(default.dtype), list(default.shape))
        return self.constant(name, default)

    def output(self, name: str, kind: int, axes: Axes) -> None:
        """Declare a tensor an output."""
        self.outputs.append(helper.make_tensor_value_info(name, kind, list(axes)))

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """A weight or constant, stored once under its name."""
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def integers(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant("ints_" + "_".join(str(v).replace("-", "m") for v in values), np.array(values, np.int64))

    def add(self, op: str, *inputs: str, to: str = "", **attributes: Attribute) -> str:
        """Add a node with one output, named `to` or after its operator."""
        return self.split(op, *inputs, to=[to or self.name_of(op)], **attributes)[0]

    def name_of(self, op: str) -> str:
        """The name that the next node's output gets, after its operator."""
        return f"{self.begin}{op}_{len(self.nodes)}"

    def cast(self, x: str, kind: int) -> str:
        """Cast a tensor to another type."""
        out = f"{self.begin}Cast_{len(self.nodes)}"
        self.nodes.append(helper.make_node("Cast", [x], [out], name=out, to=kind))
        return out

    def value(self, value: npt.ArrayLike) -> str:
        """A constant from a Constant node: a branch's outputs must be computed inside the branch."""
        return self.add("Constant", value=numpy_helper.from_array(np.asarray(value)))

    def split(self, op: str, *inputs: str, to: Sequence[str], **attributes: Attribute) -> list[str]:
        """Add a node with several outputs."""
        node = helper.make_node(op, list(inputs), list(to), name=f"{to[0]}_{op}")
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
        self.nodes.append(node)
        return list(to)

    def branch(self, name: str) -> Writer:
        """Start a branch of an `If`, to be passed to it as an attribute once written; its weights are stored in this graph."""
        made = Writer(f"{name}.")
        made.weights = self.weights
        return made

    def linear(self, name: str, layer: nn.Module, x: str) -> str:
        """A torch Linear, or a LowRank as two of them."""
        if isinstance(layer, LowRank):
            return self.linear(f"{name}.up", layer.up, self.linear(f"{name}.down", layer.down, x))
        plain = cast("nn.Linear", layer)
        return self.affine(name, plain.weight, plain.bias, x)

    def affine(self, name: str, weight: Tensor, bias: Tensor | None, x: str) -> str:
        """X W^T + b with a torch weight [out, in] and bias."""
        matrix = self.constant(f"{name}.weight", weight.detach().numpy().T)
        product = self.add("MatMul", x, matrix)
        if bias is None:
            return product
        return self.add("Add", product, self.constant(f"{name}.bias", bias.detach().numpy()))

    def norm(self, name: str, layer: nn.LayerNorm, x: str, to: str = "") -> str:
        """A torch LayerNorm over the last axis."""
        scale = self.constant(f"{name}.scale", layer.weight.detach().numpy())
        bias = self.constant(f"{name}.shift", layer.bias.detach().numpy())
        return self.add("LayerNormalization", x, scale, bias, to=to, axis=-1, epsilon=float(layer.eps))

    def graph(self, name: str) -> GraphProto:
        """The finished branch; its weights stay in the enclosing graph."""
        return helper.make_graph(self.nodes, name, [], self.outputs)

    def model(self, name: str, opset: int) -> ModelProto:
        """The finished model, checked."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.weights.values()))
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10, producer_name="distill-workbench"
        )
        onnx.checker.check_model(made)
        return made
