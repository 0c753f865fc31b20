"""Parakeet with a CTC head: the model, and its checkpoint folder, which is that of transformers' ParakeetForCTC.

In the model the head is a linear layer, as in every CTC model here; in the folder it is a convolution over one frame.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.errors import UserError, last_line
from workbench.core.files import read_object
from workbench.models.ctc.checkpoint import (
    check_blank,
    check_has_features,
    check_has_head,
    check_tensors,
    check_value,
    checked_values,
    load_tensors,
)
from workbench.models.ctc.parakeet_features import HOP_LENGTH, N_FFT, WINDOW
from workbench.models.ctc.waves import checkpointed
from workbench.models.whisper.loading.checkpoint import check_settings, feature_settings

MODEL_TYPE = "parakeet_ctc"
ARCHITECTURE = "ParakeetForCTC"
CLASSES = {
    "tokenizer_class": ("ParakeetTokenizer", "ParakeetTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
    "processor_class": ("ParakeetProcessor",),
    "feature_extractor_type": ("ParakeetFeatureExtractor",),
    "feature_extractor_class": ("ParakeetFeatureExtractor",),
}
SETTINGS = {"sampling_rate": 16_000, "hop_length": HOP_LENGTH, "win_length": WINDOW, "n_fft": N_FFT}
MOST_FACTOR = 64  # of frames to a position
KERNEL, STRIDE = 3, 2  # of the convolutions over the features
HEAD = "ctc_head."  # in transformers


class ParakeetEncoderForCTC(nn.Module):
    """transformers' ParakeetEncoder and a linear head over its states, in eval mode: its batch norms keep their statistics."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import ParakeetEncoder

        self.config = config
        self.encoder = ParakeetEncoder(config.encoder_config)
        self.lm_head = nn.Linear(config.encoder_config.hidden_size, config.vocab_size)

    def encode(self, features: Tensor, checkpointing: bool = False) -> Tensor:
        """States of features as `ParakeetLogMel` gives them. [clips, mels + 1, frames] -> [clips, positions, width]"""
        # what SpecAugment has written after a clip's end would be read by the first convolution
        mels, marks = (features[:, :-1] * features[:, -1:]).transpose(1, 2), features[:, -1] > 0
        with checkpointed(self.encoder.layers, checkpointing and torch.is_grad_enabled()):
            states: Tensor = self.encoder(input_features=mels, attention_mask=marks).last_hidden_state
        return states

    def forward(self, features: Tensor) -> Tensor:
        """Logits at each position. [clips, mels + 1, frames] -> [clips, positions, vocabulary]"""
        logits: Tensor = self.lm_head(self.encode(features))
        return logits


def check_folder(folder: Path) -> tuple[Any, float]:
    """Check a checkpoint folder, all but its vocabulary and the values of its weights; raises UserError.

    Returns:
        Its configuration, and the features' pre-emphasis.
    """
    check_settings(folder, CLASSES)
    path = folder / "config.json"
    config = _checked_config(read_object(path, "a checkpoint's configuration"), path)
    check_has_features(folder)
    source, settings = feature_settings(folder)
    for key, expected in {**SETTINGS, "feature_size": config.encoder_config.num_mel_bins}.items():
        if settings.get(key, expected) != expected:
            raise UserError(f"{source}: {key} is {str(settings[key])[:60]}; expected {expected}")
    preemphasis = settings.get("preemphasis", 0.97)
    preemphasis = 0.0 if preemphasis is None else preemphasis
    if isinstance(preemphasis, bool) or not isinstance(preemphasis, (int, float)) or not 0 <= preemphasis <= 1:
        raise UserError(f"{source}: preemphasis is {str(preemphasis)[:60]}; expected a number from 0 to 1")
    check_tensors(folder, lambda: _stock(config))
    return config, float(preemphasis)


def load(folder: Path, config: Any) -> ParakeetEncoderForCTC:
    """Load a checked folder's weights in fp32 on the CPU."""
    stock = _stock(config)
    load_tensors(folder, stock)
    with torch.device("meta"):  # its tensors are those of the other
        model = ParakeetEncoderForCTC(copy.deepcopy(config))
    model.encoder = stock.encoder
    head = {"weight": stock.ctc_head.weight[..., 0].detach(), "bias": stock.ctc_head.bias.detach()}
    model.lm_head.load_state_dict(head, assign=True)
    return model.eval()


def save(model: ParakeetEncoderForCTC, folder: Path) -> None:
    """Write a model as transformers does."""
    with torch.device("meta"):  # as above
        stock = _stock(model.config)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("lm_head.")}
    head = {f"{HEAD}weight": model.lm_head.weight[..., None], f"{HEAD}bias": model.lm_head.bias}
    stock.load_state_dict(state | head, assign=True)
    stock.save_pretrained(folder)


def _stock(config: Any) -> Any:
    from transformers import ParakeetForCTC

    return ParakeetForCTC(copy.deepcopy(config)).eval()


def _checked_config(content: dict[str, Any], path: Path) -> Any:
    """A configuration all of whose values have the right type and are within bounds; other keys are left out. Raises UserError."""
    from transformers import ParakeetCTCConfig, ParakeetEncoderConfig

    check_has_head(content, ARCHITECTURE, path)
    inner = content.get("encoder_config")
    if not isinstance(inner, dict):
        raise UserError(f"{path}: encoder_config is {repr(inner)[:60]}; expected the encoder's settings")
    values = checked_values(ParakeetEncoderConfig, inner, path, "encoder_config.")
    for key, expected in (("subsampling_conv_kernel_size", KERNEL), ("subsampling_conv_stride", STRIDE)):
        if values.get(key, expected) != expected:
            raise UserError(f"{path}: encoder_config.{key} is {values[key]}; expected {expected}")
    outer = {key: content[key] for key in ("vocab_size", "pad_token_id") if key in content}
    for key, value in outer.items():
        check_value(path, key, value, 1)
    try:
        encoder = ParakeetEncoderConfig(**values)
        config = ParakeetCTCConfig(**outer, encoder_config=encoder)
    except Exception as error:  # noqa: BLE001  # it checks its settings with errors of several kinds
        raise UserError(f"{path}: transformers rejects it: {last_line(str(error))}") from None
    config.architectures = [ARCHITECTURE]
    factor, bands = encoder.subsampling_factor, encoder.num_mel_bins
    if factor not in (2**i for i in range(1, 7)):
        raise UserError(
            f"{path}: encoder_config.subsampling_factor is {factor}; expected a power of two from 2 to {MOST_FACTOR}"
        )
    if bands % factor:
        raise UserError(
            f"{path}: encoder_config.num_mel_bins is {bands}; expected a multiple of subsampling_factor, {factor}"
        )
    if (width := encoder.hidden_size) % (heads := encoder.num_attention_heads) or width % 2:
        raise UserError(
            f"{path}: encoder_config.hidden_size is {width}; expected an even number that num_attention_heads, {heads}, divides"
        )
    if not encoder.conv_kernel_size % 2:
        raise UserError(
            f"{path}: encoder_config.conv_kernel_size is {encoder.conv_kernel_size}; expected an odd number"
        )
    check_blank(config, path)
    return config
