"""Run Optimum's exporter in its own environment: `python export_decoder.py FOLDER FRAMES OPSET`.

The folder holds the full model's config.json and, in decoder.safetensors, all weights but the encoder's; decoder_model_merged.onnx is
written there. The encoder is not exported, so its layers, which this transformers may not support, are not needed. Nothing is imported from
the workbench, which does not support this transformers version.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


def main(folder: Path, frames: int, opset: int) -> None:
    """Write the merged decoder: one file with a branch for the prompt and one for later tokens."""
    from optimum.exporters.onnx import export_models
    from optimum.exporters.onnx.model_configs import WhisperOnnxConfig
    from optimum.exporters.utils import get_encoder_decoder_models_for_export

    warnings.simplefilter("ignore")  # tracer warnings about Python branches and constants
    model = _decoder(folder)
    config = WhisperOnnxConfig(model.config, task="automatic-speech-recognition", use_past=True)
    parts: dict[str, tuple[object, object]] = get_encoder_decoder_models_for_export(model, config)
    parts = {name: part for name, part in parts.items() if "encoder_model" not in name}
    names = [f"{name}.onnx" for name in parts]
    export_models(parts, folder, opset=opset, output_names=names, input_shapes={"nb_max_frames": frames})
    # ties the projection to the embedding, then merges both decoders into one file
    config.post_process_exported_models(folder, parts, names)


def _decoder(folder: Path) -> WhisperForConditionalGeneration:
    """A Whisper with the decoder's weights and an unused encoder; raises ValueError if the weights do not fit."""
    from safetensors.torch import load_file
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig.from_json_file(folder / "config.json")
    config.encoder_layers = 1
    config._attn_implementation = "eager"  # traced SDPA adds a guard against masked-out rows to every layer
    model: WhisperForConditionalGeneration = WhisperForConditionalGeneration(config).eval()
    missing, unknown = model.load_state_dict(load_file(folder / "decoder.safetensors"), strict=False)
    tied = {"proj_out.weight"} if config.tie_word_embeddings else set()
    if wrong := [*unknown, *(name for name in missing if not name.startswith("model.encoder.") and name not in tied)]:
        raise ValueError(f"the decoder's weights do not fit its configuration: {wrong[0]}")
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
