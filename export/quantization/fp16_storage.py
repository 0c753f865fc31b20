"""Store the weights that a quantizer leaves in fp32 as fp16, widened when the graph is loaded.

Convolutions, position embeddings and block scales are a sixth of a quantized student. Each becomes an fp16 initializer and a Cast, which
onnxruntime folds at load, so nothing is computed in half precision. Matrices are not touched: layers kept in fp32 stay exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.graphs.edit import branches
from export.graphs.names import IN_FP32
from workbench.models.quantization import HALF_BYTES, HALF_LARGEST

PRODUCTS = ("MatMul", "Gemm")


def store_in_half(model: ModelProto) -> int:
    """Convert a graph's weights in place; returns how many were stored as fp16."""
    kept = {
        name
        for node in _nodes(model)
        if node.op_type in PRODUCTS or node.name.startswith(IN_FP32)
        for name in node.input
    }
    casts = []
    for weight in list(model.graph.initializer):
        if weight.data_type != TensorProto.FLOAT or weight.name in kept or 4 * prod(weight.dims) < HALF_BYTES:
            continue  # not worth a Cast node
        values = numpy_helper.to_array(weight)
        if np.abs(values).max() > HALF_LARGEST:
            continue
        name = f"{weight.name}_half"
        model.graph.initializer.remove(weight)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), name))
        casts.append(helper.make_node("Cast", [name], [weight.name], name=f"{name}_widened", to=TensorProto.FLOAT))
    for node in reversed(casts):
        model.graph.node.insert(0, node)
    return len(casts)


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from model.graph.node
    for branch in branches(model):
        yield from branch.node
