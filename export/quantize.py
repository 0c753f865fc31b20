"""Precisions: named schemes that turn a bundle's fp32 graphs into smaller or faster ones.

int8 quantizes the weights of matrix products per output channel and their inputs as they come (dynamically).
Convolutions stay fp32: quantized they cost accuracy and gain nothing here. The decoder's embedding, which is also its
projection, is stored once, as int8 rows with a scale each; onnxruntime's quantizer would leave it fp32 because it
reaches the product through a transpose.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from workbench.errors import UserError, nearest
from workbench.host import has_int8_dot_product

SUFFIXES = {"fp32": "", "int8": "_quantized"}  # of file names, as transformers.js and Optimum expect them


def graph_name(name: str, precision: str) -> str:
    """File name of a graph in a precision: encoder_model.onnx, encoder_model_quantized.onnx."""
    return name.replace(".onnx", f"{SUFFIXES[precision]}.onnx")


def check_precisions(names: list[str]) -> list[str]:
    """Return the names without repeats; raises UserError for one that is not known."""
    for name in names:
        if name not in SUFFIXES:
            raise UserError(f"--precision {name!r}{nearest(name, SUFFIXES)}")
    if not names:
        raise UserError(f"--precision is empty; expected some of {', '.join(SUFFIXES)}")
    return list(dict.fromkeys(names))


def quantize_int8(source: Path, target: Path, reduce_range: bool | None = None) -> None:
    """Quantize the matrix products of a graph to int8.

    Args:
        source: an fp32 graph.
        target: where to write the int8 one.
        reduce_range: use 7 bits, so that CPUs without an int8 dot product (x86 before VNNI) do not saturate; by
            default where this host lacks one.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if reduce_range is None:
        reduce_range = not has_int8_dot_product()
    root = logging.getLogger()
    level = root.level
    root.setLevel(
        logging.ERROR
    )  # the quantizer logs each step, and advice that does not fit traced graphs, on the root logger
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        )
    finally:
        root.setLevel(level)
    model = onnx.load(target)
    if quantize_tied_embedding(model, levels=63 if reduce_range else 127):
        onnx.checker.check_model(model)
        onnx.save(model, target)


def hoist_transposes(model: onnx.ModelProto) -> int:
    """Move transposes of weights out of the branches of a merged decoder to its main graph; returns how many moved.

    onnxruntime folds a transposed weight once at load in the main graph. Inside a branch it transposes the whole
    embedding again at every token.
    """
    weights = {i.name for i in model.graph.initializer}
    hoisted: dict[str, str] = {}  # weight -> its transpose in the main graph
    nodes = []
    for branch in _branches(model):
        for node in [n for n in branch.node if n.op_type == "Transpose" and n.input[0] in weights]:
            weight = node.input[0]
            if weight not in hoisted:
                hoisted[weight] = f"{weight}_transposed_once"
                nodes.append(helper.make_node("Transpose", [weight], [hoisted[weight]], perm=[1, 0]))
            for other in branch.node:
                for i, name in enumerate(other.input):
                    if name == node.output[0]:
                        other.input[i] = hoisted[weight]
            branch.node.remove(node)
    for node in nodes:
        model.graph.node.insert(0, node)
    return len(nodes)


def quantize_tied_embedding(model: onnx.ModelProto, levels: int = 127) -> bool:
    """Replace an embedding that is also the projection by int8 rows with a scale each, stored once.

    Rows are looked up and scaled; the projection multiplies the transposed rows as integers. Returns whether the model
    has such an embedding.
    """
    graph = model.graph
    transpose = next(
        (n for n in graph.node if n.op_type == "Transpose" and n.output[0].endswith("_transposed_once")), None
    )
    if transpose is None:
        return False
    weight = next(i for i in graph.initializer if i.name == transpose.input[0])
    rows = numpy_helper.to_array(weight)  # [vocabulary, width]
    scale = np.maximum(np.abs(rows).max(1, keepdims=True), 1e-12) / levels  # [vocabulary, 1]
    name = weight.name
    graph.initializer.remove(weight)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.round(rows / scale).astype(np.int8), f"{name}_int8"),
            numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"),
            numpy_helper.from_array(scale.astype(np.float32)[:, 0], f"{name}_scale_row"),
        ]
    )
    transpose.input[0] = f"{name}_int8"
    for stale in [v for v in graph.value_info if v.name == transpose.output[0]]:
        graph.value_info.remove(stale)  # shape inference had recorded it as float
    for branch in _branches(model) or [graph]:
        for node in list(branch.node):
            if node.op_type == "Gather" and node.input[0] == name:
                _replace(branch, node, _lookup(name, node))
            elif node.op_type == "MatMul" and node.input[1] == transpose.output[0]:
                _replace(branch, node, _projection(name, transpose.output[0], node))
    return True


def _lookup(name: str, node: Any) -> list[Any]:
    """Gather int8 rows and their scales."""
    out = node.output[0]
    return [
        helper.make_node("Gather", [f"{name}_int8", node.input[1]], [f"{out}_int8"]),
        helper.make_node("Cast", [f"{out}_int8"], [f"{out}_cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}_scale", node.input[1]], [f"{out}_scale"]),
        helper.make_node("Mul", [f"{out}_cast", f"{out}_scale"], [out]),
    ]


def _projection(name: str, transposed: str, node: Any) -> list[Any]:
    """Integer product of the dynamically quantized states with the transposed rows, scaled back."""
    states, out = node.input[0], node.output[0]
    return [
        helper.make_node("DynamicQuantizeLinear", [states], [f"{out}_q", f"{out}_qs", f"{out}_qz"]),
        helper.make_node("MatMulInteger", [f"{out}_q", transposed, f"{out}_qz"], [f"{out}_int"]),
        helper.make_node("Cast", [f"{out}_int"], [f"{out}_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [f"{out}_qs", f"{name}_scale_row"], [f"{out}_scales"]),
        helper.make_node("Mul", [f"{out}_float", f"{out}_scales"], [out]),
    ]


def _replace(graph: Any, node: Any, by: list[Any]) -> None:
    at = list(graph.node).index(node)
    graph.node.remove(node)
    for i, new in enumerate(by):
        new.name = f"{node.name}_int8_{i}"
        graph.node.insert(at + i, new)


def _branches(model: onnx.ModelProto) -> list[Any]:
    """The two branches of a merged decoder; none for other graphs."""
    return [
        a.g for n in model.graph.node if n.op_type == "If" for a in n.attribute if a.type == onnx.AttributeProto.GRAPH
    ]
