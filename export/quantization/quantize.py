"""Convert an fp32 graph to another precision (names in workbench/config/schemes.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from export.graphs.edit import nodes_of_layers, rename_in_branches
from export.graphs.names import IN_FP32
from export.quantization.fp16_storage import store_in_half
from export.quantization.int8 import Int8Options, quantize_dynamic, quantize_static
from export.quantization.weight_only import quantize_weights
from workbench.audio.decode import Wave
from workbench.config.schemes import Scheme
from workbench.core.errors import UserError
from workbench.corpus import open_corpus

CALIBRATION_CLIPS = 64
BITS = {"w8": 8, "q4": 4}


def calibration_clips(corpus: str) -> list[Wave]:
    """Calibration clips [samples] for static int8, from a corpus's training split."""
    return [u.wave() for u in open_corpus(corpus, "train", CALIBRATION_CLIPS)]


def quantize(
    source: Path,
    scheme: Scheme,
    options: Int8Options,
    calibration: Sequence[npt.NDArray[np.float32]] = (),
) -> Path:
    """Write a quantized graph beside the fp32 one.

    Args:
        source: the fp32 graph.
        scheme: the target scheme, other than fp32.
        options: options of the quantizers.
        calibration: the graph's input for each calibration clip, features [1, mels, frames] or waves [1, samples], for static int8.

    Returns:
        The new graph's path.

    Raises:
        UserError: the graph lacks a layer to leave out, or static int8 has no calibration clips.
    """
    target = source.parent / scheme.file(source.name)
    model = onnx.load(source, load_external_data=False)
    left = nodes_in_fp32(model)
    if scheme.kept:
        for layer in scheme.kept:
            if not (nodes := nodes_of_layers(model, [layer])):
                raise UserError(
                    f"--precision {scheme.label!r}: {source.name} has no layer {layer}; they are numbered from 0"
                )
            left += nodes
    if scheme.name == "int8":
        quantize_dynamic(source, target, options, left)
    elif scheme.name == "int8_static":
        if not calibration:
            raise UserError("int8_static needs calibration clips; name a corpus with --corpus")
        quantize_static(source, target, options, calibration, left)
    elif scheme.name in BITS:
        quantize_weights(source, target, BITS[scheme.name], options.symmetric, left)
    elif scheme.name == "fp16":
        _halve(source, target, keep_inputs="step" not in source.name, leave=left)
        return target
    model = onnx.load(target)
    store_in_half(model)
    onnx.save(model, target)
    return target


def nodes_in_fp32(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that stay in fp32 in every precision: the features in a graph that reads waves."""
    return [node.name for node in model.graph.node if node.name.startswith(IN_FP32)]


def _halve(source: Path, target: Path, keep_inputs: bool, leave: Sequence[str] = ()) -> None:
    """Convert all weights and products to fp16. Graphs for other runtimes keep fp32 inputs and outputs; our own runtime passes fp16 caches."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    rename_in_branches(model)
    # the encoder returns keys and values in fp32; converting them to fp16 would need a copy through the host
    ours = ["logits", *(i.name for i in model.graph.input if i.name.startswith("cross_"))]
    half = convert_float_to_float16(
        model, keep_io_types=True if keep_inputs else ours, node_block_list=list(leave) or None
    )
    if leave:
        _keep_between(half, set(leave))
    # the converter appends the input casts after the nodes that read them
    ordered = TopologicalSortPass()(ir.from_proto(half)).model
    onnx.save(ir.to_proto(ordered), target)


def _keep_between(model: onnx.ModelProto, kept: set[str]) -> None:
    """Let nodes that stay in fp32 hand each other fp32: the converter rounds what one gives another to fp16 and back."""
    graph = model.graph
    by_output = {output: node for node in graph.node for output in node.output}
    exact: dict[str, str] = {}  # what a cast to fp32 gives, and what it would give without the rounding
    for node in graph.node:
        narrow = by_output.get(node.input[0]) if node.op_type == "Cast" else None
        source = by_output.get(narrow.input[0]) if narrow is not None and narrow.op_type == "Cast" else None
        if source is not None and source.name in kept and narrow is not None:
            exact[node.output[0]] = narrow.input[0]
    for node in graph.node:
        if node.name in kept:
            for i, name in enumerate(node.input):
                node.input[i] = exact.get(name, name)
    while unused := _unused_casts(graph):
        for node in unused:
            graph.node.remove(node)


def _unused_casts(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    return [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in used]
