"""A checkpoint's ONNX graphs, through Optimum's exporter with dynamic batch and time.

Optimum's stock Whisper export fixes the encoder at 3,000 frames. `TrueLengthWhisperOnnxConfig` frees that axis, and the
encoder is traced with its positions sliced, as the student was trained (workbench/families/whisper.py).
"""

from __future__ import annotations

import contextlib
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from optimum.exporters.onnx import export_models
from optimum.exporters.onnx.config import ConfigBehavior
from optimum.exporters.onnx.model_configs import WhisperOnnxConfig
from optimum.exporters.utils import get_encoder_decoder_models_for_export
from transformers.modeling_outputs import BaseModelOutput

from export.quantize import hoist_transposes
from workbench.families.log_mel import LogMel
from workbench.families.whisper import encode

OPSET = 18
ENCODER, DECODER, FRONTEND = "encoder_model.onnx", "decoder_model_merged.onnx", "frontend.onnx"
TRACED_FRAMES = 480  # any even number will do; the axis is dynamic


class TrueLengthWhisperOnnxConfig(WhisperOnnxConfig):  # type: ignore[misc]  # optimum has no type information
    """Whisper with a dynamic time axis on the encoder."""

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Axes of the inputs by name."""
        axes: dict[str, dict[int, str]] = super().inputs
        if self._behavior is ConfigBehavior.ENCODER:
            axes["input_features"] = {0: "batch_size", 2: "frames"}
        return axes

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Axes of the outputs by name."""
        axes: dict[str, dict[int, str]] = super().outputs
        if self._behavior is ConfigBehavior.ENCODER:
            axes["last_hidden_state"] = {0: "batch_size", 1: "encoder_sequence_length"}
        return axes


def export_graphs(model: Any, folder: Path) -> None:
    """Write encoder_model.onnx, decoder_model_merged.onnx and frontend.onnx (waves to log-mel) of a Whisper model.

    Args:
        model: a WhisperForConditionalGeneration in fp32 on the CPU.
        folder: an existing folder for the three files.
    """
    config = TrueLengthWhisperOnnxConfig(model.config, task="automatic-speech-recognition", use_past=True)
    model.config._attn_implementation = "eager"  # traced SDPA adds a guard against masked-out rows to every layer
    with _quiet(), _encoder_at_true_length(model):
        parts = get_encoder_decoder_models_for_export(model, config)
        names = [f"{name}.onnx" for name in parts]
        export_models(parts, folder, opset=OPSET, output_names=names, input_shapes={"nb_max_frames": TRACED_FRAMES})
        # ties the projection to the embedding, then merges both decoders into one file
        config.post_process_exported_models(folder, parts, names)
    for name in names:
        if name not in (ENCODER, DECODER):
            (folder / name).unlink(missing_ok=True)
    decoder = onnx.load(folder / DECODER)
    hoist_transposes(decoder)
    onnx.save(decoder, folder / DECODER)
    _export_frontend(model.config.num_mel_bins, folder / FRONTEND)
    for name in (ENCODER, DECODER, FRONTEND):
        onnx.checker.check_model(str(folder / name))


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
            dynamo=False,  # Optimum's exporter traces too; one way for all graphs
        )


@contextlib.contextmanager
def _encoder_at_true_length(model: Any) -> Iterator[None]:
    """Replace the encoder's forward, which insists on 3,000 frames, by ours while graphs are traced."""
    encoder = model.get_encoder()

    def forward(_encoder: Any, input_features: torch.Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=encode(model, input_features))

    encoder.forward = types.MethodType(forward, encoder)
    try:
        yield
    finally:
        del encoder.forward


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
