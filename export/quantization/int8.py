"""int8: matrix products with integer weights and activations, quantized at run time (dynamic) or with calibrated ranges (static).

Weights are quantized per output channel. Convolutions stay fp32: quantizing them costs accuracy without a gain here. The decoder's
embedding, which is also its projection, is stored once, as int8 rows with one scale per row; onnxruntime's quantizer would leave it in fp32
because a transpose precedes the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper

from export.graphs.edit import branches, replace, tied_transpose
from workbench.core.machine.host import has_int8_dot_product
from workbench.core.quiet import errors_only
from workbench.models.quantization import tied_rows


@dataclass(frozen=True)
class Int8Options:
    """Options of onnxruntime's quantizer.

    Args:
        per_channel: one scale per output channel of a weight, instead of one per weight.
        reduce_range: use 7 bits, so that CPUs without an int8 dot product (x86 before VNNI) do not saturate; None: only if this host lacks one.
        symmetric: no zero points, for activations in static int8 and for block-quantized weights.
    """

    per_channel: bool = True
    reduce_range: bool | None = None
    symmetric: bool = False

    @property
    def reduced(self) -> bool:
        """Whether 7 bits are used."""
        return not has_int8_dot_product() if self.reduce_range is None else self.reduce_range


DEFAULTS = Int8Options()


def quantize_dynamic(source: Path, target: Path, options: Int8Options, leave: Sequence[str] = ()) -> None:
    """Quantize the matrix products of an fp32 graph to dynamic int8; nodes named in `leave` stay fp32."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    with errors_only():  # it logs every step, and advice that does not apply here, on the root logger
        quantize(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=options.per_channel,
            reduce_range=options.reduced,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(leave),
            extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        )
    model = onnx.load(target)
    if quantize_tied_embedding(model, options.reduced):
        onnx.checker.check_model(model)
        onnx.save(model, target)


def quantize_static(
    source: Path,
    target: Path,
    options: Int8Options,
    inputs: Sequence[npt.NDArray[np.float32]],
    leave: Sequence[str] = (),
) -> None:
    """Quantize an encoder's matrix products to static int8 (QDQ), activation ranges calibrated on some values of the graph's one input."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    name = onnx.load(source, load_external_data=False).graph.input[0].name

    class Clips(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:  # type: ignore[override]  # None ends the calibration
            clip = next(self.left, None)
            return None if clip is None else {name: clip}

    with errors_only():  # it logs every step, and advice that does not apply here, on the root logger
        quantize(
            source,
            target,
            Clips(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=options.per_channel,
            reduce_range=options.reduced,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(leave),
            extra_options={"MatMulConstBOnly": True, "ActivationSymmetric": options.symmetric},
        )


def quantize_tied_embedding(model: onnx.ModelProto, reduce_range: bool = False) -> bool:
    """Replace an embedding tied to the projection by int8 rows with one scale per row, stored once.

    Rows are looked up and scaled; the projection multiplies the transposed rows as integers. Returns whether the model
    has such an embedding.
    """
    graph = model.graph
    transpose = tied_transpose(model)
    if transpose is None:
        return False
    weight = next(i for i in graph.initializer if i.name == transpose.input[0])
    rows = numpy_helper.to_array(weight)  # [vocabulary, width]
    values, scales = tied_rows(torch.tensor(rows), reduce_range)
    scale = scales.numpy()
    name = weight.name
    graph.initializer.remove(weight)
    graph.initializer.extend(
        [
            numpy_helper.from_array(values.numpy().astype(np.int8), f"{name}_int8"),
            numpy_helper.from_array(scale[:, None], f"{name}_scale"),
            numpy_helper.from_array(scale, f"{name}_scale_row"),
        ]
    )
    transpose.input[0] = f"{name}_int8"
    for stale in [v for v in graph.value_info if v.name == transpose.output[0]]:
        graph.value_info.remove(stale)  # shape inference had recorded it as float
    for branch in branches(model) or [graph]:
        for node in list(branch.node):
            if node.op_type == "Gather" and node.input[0] == name:
                replace(branch, node, _lookup(name, node))
            elif node.op_type == "MatMul" and node.input[1] == transpose.output[0]:
                replace(branch, node, _projection(name, transpose.output[0], node))
    return True


def _lookup(name: str, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Gather int8 rows and their scales."""
    out = node.output[0]
    return [
        helper.make_node("Gather", [f"{name}_int8", node.input[1]], [f"{out}_int8"]),
        helper.make_node("Cast", [f"{out}_int8"], [f"{out}_cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}_scale", node.input[1]], [f"{out}_scale"]),
        helper.make_node("Mul", [f"{out}_cast", f"{out}_scale"], [out]),
    ]


def _projection(name: str, transposed: str, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Integer product of dynamically quantized states and the transposed rows, then dequantized."""
    states, out = node.input[0], node.output[0]
    return [
        helper.make_node("DynamicQuantizeLinear", [states], [f"{out}_q", f"{out}_qs", f"{out}_qz"]),
        helper.make_node("MatMulInteger", [f"{out}_q", transposed, f"{out}_qz"], [f"{out}_int"]),
        helper.make_node("Cast", [f"{out}_int"], [f"{out}_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [f"{out}_qs", f"{name}_scale_row"], [f"{out}_scales"]),
        helper.make_node("Mul", [f"{out}_float", f"{out}_scales"], [out]),
    ]
