"""A checkpoint's ONNX graphs: features, encoder and one decoder for each way of calling it.

The encoder takes any number of frames and returns the states and every decoder layer's cross-attention keys and values, computed once. All
graphs are written node by node (graphs/writer.py); Hugging Face's decoder can come from Optimum's exporter instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from export.graphs.encoder import encoder_graph, frontend_graph
from export.graphs.merged import merged_graph
from export.graphs.names import DECODER, ENCODER, FRONTEND, SHERPA, STEP
from export.graphs.sherpa import sherpa_graph, sherpa_metadata
from export.graphs.step import step_graph
from workbench.models.whisper.family import Whisper

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


def export_graphs(
    model: WhisperForConditionalGeneration, family: Whisper, folder: Path, margin: int | None, heads: Sequence[Sequence[int]] = (),
    through: str = "workbench",
) -> None:  # fmt: skip
    """Write all graphs of a Whisper model in fp32.

    Args:
        model: a WhisperForConditionalGeneration in fp32 on the CPU.
        family: its configuration and tokens.
        folder: an existing folder for the files.
        margin: as returned by `margin_frames`.
        heads: alignment heads from `alignment.choose_heads`, for word timestamps.
        through: the exporter that writes the merged decoder, `workbench` or `optimum`.
    """
    suppress_tokens, first = family.suppress_tokens, family.begin_suppress_tokens
    encoder = encoder_graph(model, margin)
    helper.set_model_props(encoder, sherpa_metadata(family))
    onnx.save(frontend_graph(model.config.num_mel_bins), folder / FRONTEND)
    onnx.save(encoder, folder / ENCODER)
    if through == "optimum":
        from export.graphs.merged_by_optimum import merged_decoder

        merged_decoder(model, suppress_tokens, first, folder / DECODER)
    else:
        onnx.save(merged_graph(model, suppress_tokens, first), folder / DECODER)
    write_step(model, family, folder, heads)
    onnx.save(sherpa_graph(model, suppress_tokens, first), folder / SHERPA)


def write_step(
    model: WhisperForConditionalGeneration, family: Whisper, folder: Path, heads: Sequence[Sequence[int]] = (), exact: bool = True
) -> Path:  # fmt: skip
    """Write our own runtime's decoder in fp32, as `export_graphs` does; `exact` as for `step_graph`. -> its path"""
    graph = step_graph(model, family.suppress_tokens, family.begin_suppress_tokens, heads, exact)
    onnx.save(graph, folder / STEP)
    return folder / STEP


def margin_frames(length: str, margin_seconds: float) -> int | None:
    """Frames (10 ms) of silence that the encoder sees after a clip; None for a model that reads 30 s (see `origin.Origin`)."""
    return round(100 * margin_seconds) if length == "true" else None
