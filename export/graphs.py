"""A checkpoint's ONNX graphs: features, encoder and one decoder for each way of calling it.

The encoder takes any number of frames and gives the states and, computed once, every decoder layer's keys and values of them.
Optimum's exporter writes the decoder that Hugging Face's clients call, with its two branches; step_graph.py and sherpa_graph.py
write the other two.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from optimum.exporters.onnx import export_models
from optimum.exporters.onnx.model_configs import WhisperOnnxConfig
from optimum.exporters.utils import get_encoder_decoder_models_for_export
from torch import Tensor, nn

from export.manifest import GRAPH_FILES
from export.onnx_edit import hoist_transposes, name_weights_by_use
from export.sherpa_graph import sherpa_graph, sherpa_metadata
from export.silence import as_trained
from export.step_graph import lowered, step_graph
from workbench.families.log_mel import LogMel
from workbench.families.whisper import Whisper
from workbench.families.whisper_passes import encode

OPSET = 18
FRONTEND, ENCODER, DECODER, STEP, SHERPA = (
    GRAPH_FILES[p] for p in ("frontend", "encoder", "decoder", "step", "sherpa")
)
QUANTIZED = (ENCODER, DECODER, STEP, SHERPA)
TRACED_FRAMES = 480  # any even number will do; the axis is dynamic


class Encoder(nn.Module):
    """The encoder, and the decoder's keys and values of its states; sherpa-onnx takes the first two outputs, others the third."""

    def __init__(self, model: Any, margin: int | None) -> None:
        super().__init__()
        self.model, self.margin = model, margin

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[clips, mels, frames] -> twice [layers, clips, positions, width], [clips, positions, width]"""
        states = encode(self.model, as_trained(features, self.margin))
        attentions = [layer.encoder_attn for layer in self.model.model.decoder.layers]
        keys, values = (
            torch.stack([p(states) for p in each])
            for each in zip(*((a.k_proj, a.v_proj) for a in attentions), strict=True)
        )
        return keys, values, states


def export_graphs(
    model: Any, family: Whisper, folder: Path, margin: int | None, heads: Sequence[Sequence[int]] = ()
) -> None:
    """Write all graphs of a Whisper model in fp32.

    Args:
        model: a WhisperForConditionalGeneration in fp32 on the CPU.
        family: its configuration and tokens.
        folder: an existing folder for the files.
        margin: as `margin_frames` gives it.
        heads: as `alignment.choose_heads` gives them, for word times.
    """
    model.config._attn_implementation = "eager"  # traced SDPA adds a guard against masked-out rows to every layer
    suppressed, first = family.suppressed, family.suppressed_first
    _export_frontend(model.config.num_mel_bins, folder / FRONTEND)
    _export_encoder(model, folder / ENCODER, margin)
    _export_merged(model, folder)
    _rewrite(folder / DECODER, lambda graph: suppress(graph, suppressed, first))
    _rewrite(folder / ENCODER, lambda graph: helper.set_model_props(graph, sherpa_metadata(family)))
    onnx.save(step_graph(model, suppressed, first, heads), folder / STEP)
    onnx.save(sherpa_graph(model, suppressed, first), folder / SHERPA)


def margin_frames(length: str, margin_seconds: float) -> int | None:
    """Frames of silence, of 10 ms, that a model hears after a clip; None for one that reads 30 s (see `bundle.Origin`)."""
    return round(100 * margin_seconds) if length == "true" else None


def suppress(model: onnx.ModelProto, always: list[int], first: list[int]) -> None:
    """Lower the logits of tokens that must not be written, in both branches of a merged decoder: not every runtime does.

    Args:
        model: the merged decoder.
        always: ids never written.
        first: ids not written first, which is what the branch without a past writes.
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


def _export_merged(model: Any, folder: Path) -> None:
    config = WhisperOnnxConfig(model.config, task="automatic-speech-recognition", use_past=True)
    with _quiet():
        parts = get_encoder_decoder_models_for_export(model, config)
        parts = {name: part for name, part in parts.items() if "encoder_model" not in name}
        names = [f"{name}.onnx" for name in parts]
        export_models(parts, folder, opset=OPSET, output_names=names, input_shapes={"nb_max_frames": TRACED_FRAMES})
        # ties the projection to the embedding, then merges both decoders into one file
        config.post_process_exported_models(folder, parts, names)
    for name in names:
        if name != DECODER:
            (folder / name).unlink(missing_ok=True)
    _rewrite(folder / DECODER, name_weights_by_use)
    _rewrite(folder / DECODER, hoist_transposes)


def _rewrite(path: Path, change: Any) -> None:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def _export_encoder(model: Any, path: Path, margin: int | None) -> None:
    layers = {0: "layers", 1: "batch_size", 2: "encoder_sequence_length"}
    with _quiet():
        torch.onnx.export(
            Encoder(model, margin).eval(),
            (torch.randn(2, model.config.num_mel_bins, TRACED_FRAMES),),
            str(path),
            input_names=["input_features"],
            output_names=["n_layer_cross_k", "n_layer_cross_v", "last_hidden_state"],
            dynamic_axes={
                "input_features": {0: "batch_size", 2: "frames"},
                "n_layer_cross_k": layers,
                "n_layer_cross_v": layers,
                "last_hidden_state": {0: "batch_size", 1: "encoder_sequence_length"},
            },
            opset_version=OPSET,
            dynamo=False,  # Optimum's exporter traces too; one way for all graphs
        )


def _export_frontend(mels: int, path: Path) -> None:
    axes = {"waves": {0: "batch_size", 1: "samples"}, "input_features": {0: "batch_size", 2: "frames"}}
    with _quiet():
        torch.onnx.export(
            LogMel(mels),
            (torch.zeros(1, 16_000),),
            str(path),
            input_names=["waves"],
            output_names=["input_features"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracer's remarks about Python branches and constants; a wrong graph fails the parity check instead."""
    import logging

    names = ("optimum", "torch.onnx")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
