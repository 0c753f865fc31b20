"""Parakeet with a CTC head, as transformers has it: a conformer over log-mel features that writes sentencepiece tokens, one or none every 80 ms."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.config.sections import StudentRecipe
from workbench.core.errors import UserError
from workbench.models.ctc import parakeet_model
from workbench.models.ctc.family import CtcFamily, trained_silence
from workbench.models.ctc.parakeet_features import HOP_LENGTH, ParakeetLogMel, frames_of
from workbench.models.ctc.parakeet_model import ParakeetEncoderForCTC
from workbench.models.ctc.students import with_layers
from workbench.models.ctc.tokens import read_sentencepiece
from workbench.models.ctc.waves import output_of, padded_waves
from workbench.models.protocol import Family, Part
from workbench.models.quantization import ExportedWeight
from workbench.models.students import choose_layers

# what a graph multiplies by of each layer; the projected distances are a table there
LINEAR = ("feed_forward1.linear1", "feed_forward1.linear2", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "conv.pointwise_conv1", "conv.pointwise_conv2", "feed_forward2.linear1", "feed_forward2.linear2")  # fmt: skip


class ParakeetCtc(CtcFamily):
    """A ParakeetForCTC checkpoint."""

    reads_waves = False
    early_by_hook = True

    def __init__(self, folder: Path) -> None:
        """Open a checkpoint's vocabulary and settings; raises UserError for one that cannot be used."""
        config, preemphasis = parakeet_model.check_folder(folder)
        tokens = read_sentencepiece(folder, config.pad_token_id, config.vocab_size)
        super().__init__(folder, config, tokens, trained_silence(folder))
        self.factor = int(config.encoder_config.subsampling_factor)  # frames of a position
        self.samples_per_position = HOP_LENGTH * self.factor
        self.frontend = ParakeetLogMel(config.encoder_config.num_mel_bins, preemphasis)

    @classmethod
    def check(cls, folder: Path) -> None:
        """Raise UserError for a folder that cannot be used."""
        cls(folder)

    @property
    def width(self) -> int:
        """Width of the encoder's states."""
        return int(self.config.encoder_config.hidden_size)

    @property
    def mels(self) -> int:
        """Mel bands of the features."""
        return self.frontend.mels

    def load(self) -> ParakeetEncoderForCTC:
        """Load the weights in fp32 on the CPU."""
        return parakeet_model.load(self.folder, self.config)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a model as transformers does."""
        parakeet_model.save(_as_parakeet(model), folder)

    def empty_copy(self, model: nn.Module) -> nn.Module:
        """A model of the same shape."""
        return ParakeetEncoderForCTC(copy.deepcopy(_as_parakeet(model).config)).eval()

    def build_student(self, model: nn.Module, recipe: StudentRecipe) -> nn.Module:
        """Copy some of the encoder's layers, and all before and after them."""
        kept = choose_layers(recipe.encoder_layers, self.encoder_depth(model), "encoder_layers")
        student: nn.Module = with_layers(model, kept, "encoder.layers.")
        return student

    def check_origin(self, origin: Family, where: str) -> None:
        """Raise UserError unless it is a Parakeet that writes the same tokens and reads the same features."""
        if not isinstance(origin, ParakeetCtc):
            raise UserError(f"{where} is not a Parakeet with a CTC head, as the teacher is; expected a {parakeet_model.ARCHITECTURE} checkpoint")  # fmt: skip
        if not self.same_tokens(origin):
            raise UserError(
                f"{where} has another vocabulary than the teacher; expected the same tokens with the same ids"
            )
        read = [(f.mels, f.factor, f.frontend.preemphasis) for f in (self, origin)]
        if read[0] != read[1]:
            raise UserError(
                f"{where} reads other features: mel bands, frames of a position and pre-emphasis are {read[1]}, the teacher's {read[0]}; expected the same"
            )

    def part_of(self, parameter: str) -> Part:
        """The head is the `decoder`, all else the encoder."""
        return "decoder" if parameter.startswith("lm_head.") else "encoder"

    def positions(self, samples: int) -> int:
        """Number of encoder positions of a wave of this length."""
        return -(-frames_of(samples) // self.factor)

    def samples(self, positions: int) -> int:
        """Most samples of a wave with this number of positions."""
        return positions * self.samples_per_position + HOP_LENGTH - 1

    def features(self, waves: Sequence[Wave], seconds: float, device: torch.device | str = "cpu") -> Tensor:
        """Features of waves padded with silence to `seconds`, and where each clip has frames. -> [clips, mels + 1, frames]"""
        whole = round(min(seconds, self.window_seconds) * SAMPLE_RATE)
        padded, samples = padded_waves(waves, whole)
        heard = samples + (whole - samples.max())  # each with as much silence as the longest
        return self.spectrum(padded.to(device), samples.to(device), heard.to(device))

    @torch.no_grad()
    def spectrum(self, padded: Tensor, samples: Tensor, heard: Tensor) -> Tensor:
        """Features in fp32, and where each clip has frames. -> [clips, mels + 1, frames]"""
        with torch.autocast(padded.device.type, enabled=False):
            features: Tensor = self.frontend.to(padded.device)(padded, samples, heard)
        return features

    def encode(
        self, model: nn.Module, features: Tensor, attention_mask: Tensor | None = None, checkpointing: bool = False
    ) -> Tensor:
        """Encoder states of the positions that the features' last row marks. -> [clips, positions, width]"""
        return _as_parakeet(model).encode(features, checkpointing)

    def encode_with_early(
        self,
        model: nn.Module,
        features: Tensor,
        layer: int,
        attention_mask: Tensor | None = None,
        checkpointing: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encoder states, and those after an earlier layer, which ends with a norm of its own. -> twice [clips, positions, width]"""
        with output_of(_as_parakeet(model).encoder.layers[layer]) as early:
            states = self.encode(model, features, attention_mask, checkpointing)
        return states, early[0]

    def _encoder_weights(self, model: nn.Module) -> Sequence[ExportedWeight]:
        layers = [
            ExportedWeight(f"encoder.layers.{i}.{part}.weight", layer=i)
            for i in range(self.encoder_depth(model))
            for part in LINEAR
        ]
        return [ExportedWeight("encoder.subsampling.linear.weight"), *layers]

    def encoder_depth(self, model: nn.Module) -> int:
        """How many layers the encoder has."""
        return len(_as_parakeet(model).encoder.layers)


def _as_parakeet(model: nn.Module) -> ParakeetEncoderForCTC:
    return cast(ParakeetEncoderForCTC, model)
