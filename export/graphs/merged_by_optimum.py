"""The merged decoder from Optimum's own exporter (`workbench export --decoder-exporter optimum`), the reference for graphs/merged.py."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import helper, numpy_helper

from export.graphs.edit import hoist_transposes, name_weights_by_use
from export.graphs.step import lowered
from export.optimum.environment import environment
from workbench.core.errors import last_line
from workbench.core.machine.children import killed_with_parent

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import WhisperForConditionalGeneration

OPSET = 18  # as in graphs/merged.py
FRAMES = 480  # of the tracing example; any even number will do


def merged_decoder(
    model: WhisperForConditionalGeneration,
    suppress_tokens: Sequence[int],
    begin_suppress_tokens: Sequence[int],
    path: Path,
) -> None:
    """Write `decoder_model_merged.onnx` of a model as Optimum exports it, in fp32, with suppressed tokens masked.

    Args:
        model: a WhisperForConditionalGeneration in fp32 on the CPU, its encoder of any kind.
        suppress_tokens: ids never written.
        begin_suppress_tokens: ids suppressed for the first token only.
        path: the file to write.

    Raises:
        UserError: Optimum's environment is missing and cannot be created.
        RuntimeError: the exporter failed.
    """
    from safetensors.torch import save_file

    there = environment()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # write the full config: a default omitted here may differ in the other transformers version
        model.config.to_json_file(folder / "config.json", use_diff=False)
        save_file(_weights(model), folder / "decoder.safetensors")
        command = there.command("export_decoder.py", str(folder), str(FRAMES), str(OPSET))
        done = subprocess.run(
            killed_with_parent(command), capture_output=True, text=True, check=False, cwd=folder, env=there.variables(), stdin=subprocess.DEVNULL
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"Optimum's exporter ended with exit status {done.returncode}: {last_line(done.stderr)}")
        exported = onnx.load(folder / "decoder_model_merged.onnx")
    name_weights_by_use(exported)
    hoist_transposes(exported)
    _suppress(exported, suppress_tokens, begin_suppress_tokens)
    onnx.save(exported, path)


def _weights(model: WhisperForConditionalGeneration) -> dict[str, Tensor]:
    """All weights but the encoder's; the output projection only if it is not tied to the embedding."""
    tied = model.config.tie_word_embeddings
    return {
        name: weight.contiguous()
        for name, weight in model.state_dict().items()
        if not name.startswith("model.encoder.") and not (tied and name == "proj_out.weight")
    }


def _suppress(model: onnx.ModelProto, always: Sequence[int], first: Sequence[int]) -> None:
    """Mask the logits of suppressed tokens in both branches of a merged decoder: not every runtime does.

    Args:
        model: the merged decoder.
        always: ids never written.
        first: ids suppressed for the first token only, which the branch without a past computes.
    """
    size = next(d for d in reversed(model.graph.output[0].type.tensor_type.shape.dim) if d.dim_value).dim_value
    branching = next(node for node in model.graph.node if node.op_type == "If")
    for attribute in branching.attribute:
        begins = attribute.name == "else_branch"
        row = lowered(size, [*always, *first] if begins else always)
        name = "suppressed_first" if begins else "suppressed"
        model.graph.initializer.append(numpy_helper.from_array(row, name))
        branch = attribute.g
        out = branch.output[0].name
        for node in branch.node:
            for i, output in enumerate(node.output):
                if output == out:
                    node.output[i] = f"{out}_as_computed"
        branch.node.append(helper.make_node("Add", [f"{out}_as_computed", name], [out], name=f"{name}_add"))
