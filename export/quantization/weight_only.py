"""Weight-only quantization to 8 or 4 bits, one scale per block along the input axis; activations stay fp32 (MatMulNBits)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper

from export.graphs.edit import branches, replace, tied_transpose
from workbench.core.errors import UserError
from workbench.core.quiet import errors_only
from workbench.models.quantization import BLOCK, tied_blocks

Floats = npt.NDArray[np.float32]
ACCURACY = 4  # lets onnxruntime multiply in int8, which makes it fast


def quantize_weights(source: Path, target: Path, bits: int, symmetric: bool = False, leave: Sequence[str] = ()) -> None:
    """Quantize the weights of a graph's matrix products.

    Args:
        source: an fp32 graph.
        target: where to write the quantized graph.
        bits: 8 or 4.
        symmetric: no zero points; the tied embedding has none in either case.
        leave: names of nodes that stay fp32.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    model = onnx.load(source)
    embedding = _quantize_tied(model, bits)
    config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=symmetric, accuracy_level=ACCURACY, bits=bits)
    quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=list(leave), algo_config=config)
    with errors_only("onnxruntime.quantization.matmul_nbits_quantizer"):  # it logs every node
        quantizer.process()
    made = quantizer.model.model
    if embedding and not any(o.domain == "com.microsoft" for o in made.opset_import):
        made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(made, target)


def _quantize_tied(model: onnx.ModelProto, bits: int) -> bool:
    """Store an embedding tied to the projection once, in quantized blocks: looked-up rows are unpacked, the projection uses MatMulNBits."""
    transpose = tied_transpose(model)
    if transpose is None:
        return False
    graph = model.graph
    weight = next(i for i in graph.initializer if i.name == transpose.input[0])
    rows = numpy_helper.to_array(weight)  # [vocabulary, width]
    name, (count, width) = weight.name, rows.shape
    if width % BLOCK:
        raise UserError(f"this model's width is {width}; w8 and q4 need a multiple of {BLOCK}; use int8 instead")
    packed, scales = pack(rows, bits, _importance(model, transpose.output[0]))
    graph.initializer.remove(weight)
    graph.node.remove(transpose)
    graph.initializer.extend(
        [
            numpy_helper.from_array(packed, f"{name}_Q{bits}"),
            numpy_helper.from_array(scales, f"{name}_scales"),
            numpy_helper.from_array(np.array(1 << (bits - 1), np.float32), f"{name}_middle"),
            numpy_helper.from_array(np.array(16, np.float32), f"{name}_16"),
            numpy_helper.from_array(np.array([-1], np.int64), f"{name}_last"),
            numpy_helper.from_array(np.array([0, 0, width // BLOCK, BLOCK], np.int64), f"{name}_blocks"),
            numpy_helper.from_array(np.array([0, 0, width], np.int64), f"{name}_row"),
        ]
    )
    for branch in branches(model) or [graph]:
        for node in list(branch.node):
            if node.op_type == "Gather" and node.input[0] == name:
                replace(branch, node, _lookup(name, node, bits))
            elif node.op_type == "MatMul" and node.input[1] == transpose.output[0]:
                replace(branch, node, [helper.make_node(
                    "MatMulNBits", [node.input[0], f"{name}_Q{bits}", f"{name}_scales"], list(node.output), domain="com.microsoft",
                    K=width, N=count, bits=bits, block_size=BLOCK, accuracy_level=ACCURACY,
                )])  # fmt: skip
    return True


def pack(rows: Floats, bits: int, importance: Floats | None = None) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Quantize to symmetric blocks in MatMulNBits's layout; arguments as for `tied_blocks`, which chooses the scales.

    Returns:
        uint8 [outputs, blocks, bytes], the lower of two 4-bit values first, and float32 scales [outputs, blocks].
    """
    given = None if importance is None else torch.from_numpy(importance)
    values, scales = tied_blocks(torch.tensor(rows), bits, given)
    whole = (values + (1 << (bits - 1))).numpy().astype(np.uint8)
    if bits == 4:
        whole = whole[..., 0::2] | (whole[..., 1::2] << np.uint8(4))
    return whole, scales.numpy()


def _importance(model: onnx.ModelProto, projection: str) -> Floats | None:
    """Mean square of a tied projection's inputs, estimated from the LayerNorm before it; None if there is none. -> [width]"""
    for graph in branches(model) or [model.graph]:
        product = next(n for n in graph.node if n.op_type == "MatMul" and n.input[1] == projection)
        norm = next((n for n in graph.node if product.input[0] in n.output and n.op_type == "LayerNormalization"), None)
        if norm is not None:
            gain, bias = (_weight(model, name) for name in norm.input[1:3])
            return gain**2 + bias**2  # normalized values have a mean square of one
    return None


def _weight(model: onnx.ModelProto, name: str) -> Floats:
    """An initializer's values; Optimum's exporter aliases equal ones with Identity nodes."""
    found = next((i for i in model.graph.initializer if i.name == name), None)
    if found is not None:
        return numpy_helper.to_array(found)
    nodes = [n for graph in (model.graph, *branches(model)) for n in graph.node]
    return _weight(model, next(n.input[0] for n in nodes if n.op_type == "Identity" and name in n.output))


def _lookup(name: str, node: onnx.NodeProto, bits: int) -> list[onnx.NodeProto]:
    """Gather packed rows, unpack and scale them. ids [batch, tokens] -> [batch, tokens, width]"""
    out, ids = node.output[0], node.input[1]
    nodes = [
        helper.make_node("Gather", [f"{name}_Q{bits}", ids], [f"{out}_packed"]),  # [batch, tokens, blocks, bytes]
        helper.make_node("Cast", [f"{out}_packed"], [f"{out}_float"], to=onnx.TensorProto.FLOAT),
    ]
    whole = f"{out}_float"
    if bits == 4:  # by arithmetic, since older opsets lack bit operations
        nodes += [
            helper.make_node("Div", [whole, f"{name}_16"], [f"{out}_16ths"]),
            helper.make_node("Floor", [f"{out}_16ths"], [f"{out}_odd"]),
            helper.make_node("Mul", [f"{out}_odd", f"{name}_16"], [f"{out}_upper"]),
            helper.make_node("Sub", [whole, f"{out}_upper"], [f"{out}_even"]),
            helper.make_node("Unsqueeze", [f"{out}_even", f"{name}_last"], [f"{out}_even_1"]),
            helper.make_node("Unsqueeze", [f"{out}_odd", f"{name}_last"], [f"{out}_odd_1"]),
            helper.make_node("Concat", [f"{out}_even_1", f"{out}_odd_1"], [f"{out}_pairs"], axis=-1),
            helper.make_node("Reshape", [f"{out}_pairs", f"{name}_blocks"], [f"{out}_whole"]),
        ]
        whole = f"{out}_whole"
    return [
        *nodes,
        helper.make_node("Sub", [whole, f"{name}_middle"], [f"{out}_signed"]),
        helper.make_node("Gather", [f"{name}_scales", ids], [f"{out}_scale"]),
        helper.make_node("Unsqueeze", [f"{out}_scale", f"{name}_last"], [f"{out}_scale_1"]),
        helper.make_node("Mul", [f"{out}_signed", f"{out}_scale_1"], [f"{out}_scaled"]),
        helper.make_node("Reshape", [f"{out}_scaled", f"{name}_row"], [out]),
    ]
