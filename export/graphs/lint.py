"""Requirements on every graph of a bundle, so that its runtimes can load it: opset, axes, types, size.

Exports that work for one length or one batch size only are the most common defect; a fixed axis is caught here before any runtime runs.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from export.graphs.names import CTC, DECODER, ENCODER, FRONTEND, SHERPA, STEP
from workbench.core.errors import UserError

HIGHEST_OPSET = {
    FRONTEND: 18,
    ENCODER: 18,
    DECODER: 18,
    SHERPA: 17,  # sherpa-onnx ships its own onnxruntime
    CTC: 18,
    STEP: 24,  # TensorScatter; only our own runtime reads it
}
DOMAINS = {"", "com.microsoft", "com.ms.internal.nhwc"}  # operator sets in every build of onnxruntime
LARGEST = 2**31 - 1  # bytes: the limit of a protobuf; weights may not be external
# by name prefix: the axes of inputs and outputs that must be dynamic
FREE_AXES: dict[str, dict[str, tuple[int, ...]]] = {
    FRONTEND: {"waves": (0, 1), "input_features": (0, 2)},
    ENCODER: {"input_features": (0, 2), "n_layer_cross_": (1, 2), "last_hidden_state": (0, 1)},
    DECODER: {
        "input_ids": (0, 1), "encoder_hidden_states": (0, 1), "past_key_values": (0, 2), "logits": (0, 1), "present": (0, 2),
    },
    STEP: {"input_ids": (0, 1), "offset": (0,), "cache_": (0, 1), "cross_": (0, 1), "logits": (0,), "next_": (0, 1)},
    CTC: {"input_values": (0, 1), "logits": (0, 1)},
    SHERPA: {"tokens": (0, 1), "in_n_layer_self": (1,), "n_layer_cross": (1, 2), "logits": (0,), "out_n_layer_self": (1,)},
}  # fmt: skip


def lint_graphs(folder: Path) -> None:
    """Check all graphs in a bundle's `onnx` folder; raises UserError listing every finding."""
    findings = [f"{path.name}: {finding}" for path in sorted(folder.glob("*.onnx")) for finding in lint(path)]
    if findings:
        raise UserError(
            f"{folder}: {len(findings)} problem(s) that would keep a runtime from loading a graph: {'; '.join(findings)}"
        )


def lint(path: Path) -> list[str]:
    """Problems of a graph's file, a few words each."""
    kind = _kind(path.name)
    if kind is None:
        return []  # the speech detector is a third party's
    if path.stat().st_size > LARGEST:
        return [f"{path.stat().st_size / 1e9:.1f} GB, more than the 2.1 GB of a protobuf"]
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        return [f"not valid ({str(error).strip().splitlines()[0]})"]
    model = onnx.load(path)
    return [*_versions(model, kind), *_axes(model, kind), *_tensors(model), *_attentions(model)]


def _kind(name: str) -> str | None:
    stems = {kind.removesuffix(".onnx"): kind for kind in HIGHEST_OPSET}
    stem = name.removesuffix(".onnx")
    # step_decoder_quantized_but_0 is a step_decoder
    return next((kind for known, kind in stems.items() if stem == known or stem.startswith(f"{known}_")), None)


def _versions(model: onnx.ModelProto, kind: str) -> list[str]:
    found = {o.domain: o.version for o in model.opset_import}
    strange = sorted(set(found) - DOMAINS - {"ai.onnx"})
    out = [f"operators of {', '.join(strange)}"] if strange else []
    if (opset := found.get("", found.get("ai.onnx", 0))) > HIGHEST_OPSET[kind]:
        out.append(f"opset {opset}, above {HIGHEST_OPSET[kind]}")
    return out


def _axes(model: onnx.ModelProto, kind: str) -> list[str]:
    values = {v.name: v.type.tensor_type.shape.dim for v in [*model.graph.input, *model.graph.output]}
    out = []
    for begin, axes in FREE_AXES[kind].items():
        mine = [name for name in values if name.startswith(begin)]
        if not mine:
            out.append(f"no {begin}")
        out += [f"axis {a} of {name} is fixed at {values[name][a].dim_value}" for name in mine for a in axes if values[name][a].dim_value]  # fmt: skip
    return out


def _tensors(model: onnx.ModelProto) -> list[str]:
    out = []
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        out.append("external weights")
    if double := [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.DOUBLE]:
        out.append(f"64-bit floats ({double[0]})")
    return out


def _attentions(model: onnx.ModelProto) -> list[str]:
    """Attention nodes that output scores in a mode onnxruntime's CUDA provider lacks: it returns raw scores (mode 0) or none."""
    modes = {
        attribute.i
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "Attention" and attribute.name == "qk_matmul_output_mode"
    }
    return [
        f"Attention's scores in mode {mode}, which the CUDA provider does not support" for mode in sorted(modes - {0})
    ]
