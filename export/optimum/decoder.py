"""The merged decoder by Optimum's own exporter, `workbench export --through optimum`: what merged_graph.py's is compared with."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import onnx

from export.onnx_edit import hoist_transposes, name_weights_by_use
from export.optimum.environment import environment
from export.optimum.script import HERE
from workbench.children import ending_with_us
from workbench.errors import last_line

OPSET, TRACED_FRAMES = 18, 480  # those of graphs.py


def merged_decoder(model: Any, path: Path) -> None:
    """Write `decoder_model_merged.onnx` of a model as Optimum exports it, in fp32; no token is suppressed yet.

    Args:
        model: a WhisperForConditionalGeneration in fp32 on the CPU, its encoder of any kind.
        path: the file to write.

    Raises:
        UserError: Optimum's environment has to be made and cannot be.
        RuntimeError: the exporter failed.
    """
    from safetensors.torch import save_file

    there = environment()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # whole: what is left out because it is the default here may have another default there
        model.config.to_json_file(folder / "config.json", use_diff=False)
        save_file(_weights(model), folder / "decoder.safetensors")
        command = there.command(HERE / "export_decoder.py", str(folder), str(TRACED_FRAMES), str(OPSET))
        done = subprocess.run(
            ending_with_us(command), capture_output=True, text=True, check=False, cwd=folder, env=there.variables(), stdin=subprocess.DEVNULL
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"Optimum's exporter ended with exit status {done.returncode}: {last_line(done.stderr)}")
        exported = onnx.load(folder / "decoder_model_merged.onnx")
    name_weights_by_use(exported)
    hoist_transposes(exported)
    onnx.save(exported, path)


def _weights(model: Any) -> dict[str, Any]:
    """All weights but the encoder's; the projection only where it is not the embedding."""
    tied = model.config.tie_word_embeddings
    return {
        name: weight.contiguous()
        for name, weight in model.state_dict().items()
        if not name.startswith("model.encoder.") and not (tied and name == "proj_out.weight")
    }
