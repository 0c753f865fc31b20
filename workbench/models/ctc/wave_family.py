"""wav2vec2, HuBERT and WavLM with a CTC head, as transformers has them: they read waves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.config.sections import StudentRecipe
from workbench.core.errors import UserError
from workbench.models.ctc.checkpoint import architecture, check_ctc_checkpoint, load_tensors
from workbench.models.ctc.family import CtcFamily, trained_silence
from workbench.models.ctc.students import with_layers
from workbench.models.ctc.tokens import read_tokens
from workbench.models.ctc.waves import (
    base_of,
    encode_features,
    encode_features_with_early,
    frames_of,
    padded_waves,
    samples_of,
    samples_per_frame,
    wave_features,
)
from workbench.models.protocol import Family, Part
from workbench.models.quantization import ExportedWeight
from workbench.models.students import choose_layers


class WaveCtc(CtcFamily):
    """A Wav2Vec2ForCTC, HubertForCTC or WavLMForCTC checkpoint."""

    reads_waves = True
    early_by_hook = True

    def __init__(self, folder: Path) -> None:
        """Open a checkpoint's vocabulary and settings; raises UserError for one that cannot be used."""
        config, self.normalize = check_ctc_checkpoint(folder)
        tokens = read_tokens(folder, config.pad_token_id, config.vocab_size)
        super().__init__(folder, config, tokens, trained_silence(folder))
        self.samples_per_position = samples_per_frame(config)

    @classmethod
    def check(cls, folder: Path) -> None:
        """Raise UserError for a folder that cannot be used."""
        cls(folder)

    @property
    def width(self) -> int:
        """Width of the encoder's states."""
        return int(self.config.hidden_size)

    def load(self) -> Any:
        """Load the weights in fp32 on the CPU."""
        model = architecture(self.config.model_type)[1](copy.deepcopy(self.config))
        load_tensors(self.folder, model)
        return model.eval()

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a model as transformers does."""
        saved: Any = model
        saved.save_pretrained(folder)

    def empty_copy(self, model: nn.Module) -> nn.Module:
        """A model of the same shape."""
        shape: Any = model
        copied: nn.Module = type(shape)(copy.deepcopy(shape.config)).eval()
        return copied

    def build_student(self, model: nn.Module, recipe: StudentRecipe) -> nn.Module:
        """Copy some of the encoder's layers, and all before and after them."""
        whole: Any = model
        kept = choose_layers(recipe.encoder_layers, whole.config.num_hidden_layers, "encoder_layers")
        student: nn.Module = with_layers(whole, kept, f"{whole.base_model_prefix}.encoder.layers.")
        return student

    def check_origin(self, origin: Family, where: str) -> None:
        """Raise UserError unless it writes the same tokens and reads waves alike."""
        if not isinstance(origin, WaveCtc):
            raise UserError(
                f"{where} does not read waves with a CTC head, as the teacher does; expected a wav2vec2, HuBERT or WavLM checkpoint"
            )
        if not self.same_tokens(origin):
            raise UserError(
                f"{where} has another vocabulary than the teacher; expected the same tokens with the same ids"
            )
        kernels = [(f.config.conv_kernel, f.config.conv_stride, f.normalize) for f in (self, origin)]
        if kernels[0] != kernels[1]:
            raise UserError(
                f"{where} reads waves in other frames than the teacher, or normalises them otherwise; expected the same"
            )

    def part_of(self, parameter: str) -> Part:
        """The convolutions over the wave stay as they were, as is usual in fine-tuning; the head is the `decoder`."""
        if ".feature_extractor." in parameter or parameter.endswith("masked_spec_embed"):
            return "constant"
        return "decoder" if parameter.startswith("lm_head.") else "encoder"

    def positions(self, samples: int) -> int:
        """Number of frames of a wave of this length."""
        return frames_of(self.config, samples)

    def samples(self, positions: int) -> int:
        """Most samples of a wave with this number of frames."""
        return samples_of(self.config, positions)

    @property
    def mels(self) -> int:
        """None: it reads waves."""
        return 0

    def features(self, waves: Sequence[Wave], seconds: float, device: torch.device | str = "cpu") -> Tensor:
        """Waves padded with silence to `seconds`, and where they are. -> [clips, 2, samples]"""
        padded, samples = padded_waves(waves, round(min(seconds, self.window_seconds) * SAMPLE_RATE))
        return self.spectrum(padded.to(device), samples.to(device))

    @torch.no_grad()
    def spectrum(self, padded: Tensor, samples: Tensor, heard: Tensor | None = None) -> Tensor:
        """The waves, normalised if the checkpoint wants it, and where they are. -> [clips, 2, samples]"""
        return wave_features(padded, samples, self.normalize)

    def encode(
        self, model: nn.Module, features: Tensor, attention_mask: Tensor | None = None, checkpointing: bool = False
    ) -> Tensor:
        """Encoder states of the frames that `attention_mask` marks. -> [clips, frames, width]"""
        return encode_features(model, features, attention_mask, checkpointing)

    def encode_with_early(
        self,
        model: nn.Module,
        features: Tensor,
        layer: int,
        attention_mask: Tensor | None = None,
        checkpointing: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encoder states, and those after an earlier layer. -> twice [clips, frames, width]"""
        return encode_features_with_early(model, features, layer, attention_mask, checkpointing)

    def _encoder_weights(self, model: nn.Module) -> Sequence[ExportedWeight]:
        shape: Any = model
        prefix = str(shape.base_model_prefix)
        parts = [f"attention.{name}_proj" for name in ("q", "k", "v", "out")]
        parts += ["feed_forward.intermediate_dense", "feed_forward.output_dense"]
        if getattr(self.config, "adapter_attn_dim", None) is not None:
            parts += ["adapter_layer.linear_1", "adapter_layer.linear_2"]
        fused = self.config.model_type == "wavlm"  # its attention is one call of multi_head_attention_forward
        layers = [
            ExportedWeight(
                f"{prefix}.encoder.layers.{i}.{part}.weight", layer=i, inside=fused and part.startswith("attention.")
            )
            for i in range(self.encoder_depth(model))
            for part in parts
        ]
        return [ExportedWeight(f"{prefix}.feature_projection.projection.weight"), *layers]

    def encoder_depth(self, model: nn.Module) -> int:
        """How many layers the encoder has."""
        return len(base_of(model).encoder.layers)
