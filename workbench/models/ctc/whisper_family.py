"""A Whisper encoder with a CTC head at the true length of a clip: it reads log-mel features, and writes characters, bytes or byte-pair tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.config.sections import StudentRecipe
from workbench.core.errors import UserError
from workbench.models.ctc import whisper_encoder
from workbench.models.ctc.checkpoint import load_tensors
from workbench.models.ctc.family import CtcFamily, trained_silence
from workbench.models.ctc.tokens import CtcTokens, all_bytes, bpe_tokens_of, characters_of, read_tokens
from workbench.models.ctc.whisper_encoder import WhisperEncoderForCTC
from workbench.models.protocol import Family, Part
from workbench.models.quantization import ExportedWeight
from workbench.models.students import choose_layers
from workbench.models.whisper.exported import encoder_layers
from workbench.models.whisper.forward.log_mel import SAMPLES_PER_POSITION, LogMel, positions_of

if TYPE_CHECKING:
    from transformers import WhisperConfig

FEATURES = ("preprocessor_config.json", "processor_config.json")


class WhisperCtc(CtcFamily):
    """Checkpoints of `WhisperEncoderForCTC`."""

    reads_waves = False
    samples_per_position = SAMPLES_PER_POSITION

    def __init__(self, folder: Path) -> None:
        """Open a checkpoint's vocabulary and settings; raises UserError for one that cannot be used."""
        config, units = whisper_encoder.check_folder(folder)
        tokens = read_tokens(folder, int(config.pad_token_id or 0), config.vocab_size, units)
        self._open(folder, config, tokens, trained_silence(folder))

    def _open(self, folder: Path, config: WhisperConfig, tokens: CtcTokens, silence: float | None) -> None:
        super().__init__(folder, config, tokens, silence)
        self.frontend = LogMel(config.num_mel_bins)

    @classmethod
    def over(cls, whisper: Family, recipe: StudentRecipe, texts: Sequence[str]) -> WhisperCtc:
        """The family of students that are a Whisper's encoder with a new head.

        Args:
            whisper: an opened Whisper, the teacher.
            recipe: `student`, whose `ctc` says what the head writes.
            texts: of the corpus, from which characters and byte-pair tokens are taken.

        Raises:
            UserError: the corpus's texts are not known, as those of a stream.
        """
        if not texts and recipe.ctc != "bytes":
            raise UserError(f"student.ctc is {recipe.ctc}: the texts of a stream are not known in advance; use bytes")
        if recipe.ctc == "bytes":
            tokens = all_bytes()
        else:
            tokens = characters_of(texts) if recipe.ctc == "characters" else bpe_tokens_of(whisper.folder, texts)
        family = cls.__new__(cls)
        config = whisper_encoder.ctc_config(cast("WhisperConfig", whisper.config), tokens)
        family._open(whisper.folder, config, tokens, None)
        return family

    @classmethod
    def check(cls, folder: Path) -> None:
        """Raise UserError for a folder that cannot be used."""
        cls(folder)

    @property
    def width(self) -> int:
        """Width of the encoder's states."""
        return int(self.config.d_model)

    def load(self) -> WhisperEncoderForCTC:
        """Load the weights in fp32 on the CPU."""
        model = WhisperEncoderForCTC(copy.deepcopy(self.config))
        load_tensors(self.folder, model)
        return model.eval()

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a model and its vocabulary."""
        whisper_encoder.save(_as_ctc(model), self.ctc_tokens, folder)

    def token_and_feature_files(self) -> Sequence[Path]:
        """What says how the features are computed, and for byte-pair tokens how a text is cut into them."""
        names = (*FEATURES, *(["tokenizer.json"] if self.ctc_tokens.units == "bpe" else []))
        return [path for name in names if (path := self.folder / name).is_file()]

    def empty_copy(self, model: nn.Module) -> nn.Module:
        """A model of the same shape."""
        return WhisperEncoderForCTC(copy.deepcopy(_as_ctc(model).config)).eval()

    def build_student(self, model: nn.Module, recipe: StudentRecipe) -> nn.Module:
        """Copy some of the encoder's layers, of a Whisper or of such a model, whose head is kept."""
        source: Any = model
        kept = choose_layers(recipe.encoder_layers, source.config.encoder_layers, "encoder_layers")
        return whisper_encoder.student_of(model, kept, self.ctc_tokens)

    def check_origin(self, origin: Family, where: str) -> None:
        """Raise UserError unless it is a Whisper, or has a head over the same tokens; with as many mels."""
        if origin.name != "whisper" and not (isinstance(origin, WhisperCtc) and self.same_tokens(origin)):
            raise UserError(f"{where} is neither a Whisper nor a Whisper encoder with a CTC head over the same tokens")
        mels = getattr(origin.config, "num_mel_bins", None)
        if mels != self.config.num_mel_bins:
            raise UserError(f"{where} reads {mels} mel bins, the teacher {self.config.num_mel_bins}; expected as many")

    def part_of(self, parameter: str) -> Part:
        """The head is the `decoder`; the encoder's sinusoidal positions are constants."""
        if "embed_positions" in parameter:
            return "constant"
        return "decoder" if parameter.startswith("lm_head.") else "encoder"

    def positions(self, samples: int) -> int:
        """Number of encoder positions (20 ms each) that a wave of this length touches."""
        return positions_of(samples)

    def samples(self, positions: int) -> int:
        """Most samples of a wave with this number of positions."""
        return positions * SAMPLES_PER_POSITION

    @property
    def mels(self) -> int:
        """Mel bands of the features."""
        return int(self.config.num_mel_bins)

    @torch.no_grad()
    def features(self, waves: Sequence[Wave], seconds: float, device: torch.device | str = "cpu") -> Tensor:
        """Log-mel features of waves padded with silence to `seconds`. -> [clips, mels, frames]

        Each clip's are computed at its own length with the silence after it, as long for all, and are 0 after that.
        """
        whole = round(min(seconds, self.window_seconds) * SAMPLE_RATE)
        silence = max(whole - max(map(len, waves)), 0)
        frames = 2 * self.positions(whole)
        out = torch.zeros(len(waves), self.config.num_mel_bins, frames, device=device)
        for row, wave in zip(out, waves, strict=True):
            own = self.samples(self.positions(min(len(wave) + silence, whole)))
            padded = torch.zeros(1, own)
            padded[0, : len(wave)] = torch.from_numpy(wave[:own])
            found = self.spectrum(padded.to(device))[0]
            row[:, : found.shape[1]] = found
        return out

    @torch.no_grad()
    def spectrum(self, padded: Tensor, samples: Tensor | None = None, heard: Tensor | None = None) -> Tensor:
        """Log-mel features in fp32. [clips, samples] -> [clips, mels, frames]"""
        with torch.autocast(padded.device.type, enabled=False):
            features: Tensor = self.frontend.to(padded.device)(padded)
        return features

    def encode(
        self, model: nn.Module, features: Tensor, attention_mask: Tensor | None = None, checkpointing: bool = False
    ) -> Tensor:
        """Encoder states of the positions that `attention_mask` marks. -> [clips, positions, width]"""
        return _as_ctc(model).encode(features, attention_mask, checkpointing)

    def encode_with_early(
        self,
        model: nn.Module,
        features: Tensor,
        layer: int,
        attention_mask: Tensor | None = None,
        checkpointing: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encoder states, and those after an earlier layer under the encoder's last norm. -> twice [clips, positions, width]"""
        return _as_ctc(model).encode_with_early(features, layer, attention_mask, checkpointing)

    def _encoder_weights(self, model: nn.Module) -> Sequence[ExportedWeight]:
        return list(encoder_layers(self.encoder_depth(model)))

    def encoder_depth(self, model: nn.Module) -> int:
        """How many layers the encoder has."""
        return int(_as_ctc(model).config.encoder_layers)


def _as_ctc(model: nn.Module) -> WhisperEncoderForCTC:
    return cast(WhisperEncoderForCTC, model)
