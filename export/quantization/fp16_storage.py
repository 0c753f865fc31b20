"""Weights that a quantizer leaves as they are, stored in half the space: as 16-bit floats that are widened when the graph is loaded.

Convolutions, positions and the scales of weights in blocks are a sixth of a quantized student. Each becomes a 16-bit initializer and a Cast,
which onnxruntime folds at load, so that nothing is computed in half precision. Matrices stay: a layer left in fp32 is left in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.graphs.edit import branches

MIN_BYTES = 4096  # less is not worth a node
LARGEST = 6e4  # of what a 16-bit float holds
PRODUCTS = ("MatMul", "Gemm")


def store_in_half(model: ModelProto) -> int:
    """Change a graph in place; returns how many weights are stored in half the space now."""
    kept = {name for node in _nodes(model) if node.op_type in PRODUCTS for name in node.input}
    casts = []
    for weight in list(model.graph.initializer):
        if weight.data_type != TensorProto.FLOAT or weight.name in kept or weight.ByteSize() < MIN_BYTES:
            continue
        values = numpy_helper.to_array(weight)
        if np.abs(values).max() > LARGEST:
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
