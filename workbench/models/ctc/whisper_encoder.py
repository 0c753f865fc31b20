"""A Whisper encoder with a CTC head: the model, and its checkpoint folder.

The folder has config.json with `model_type: whisper_ctc`, the encoder's keys as in Whisper's, `units`, and `pad_token_id`, the blank; vocab.json;
preprocessor_config.json as Whisper's; and model.safetensors with Whisper's names for the encoder and `lm_head` for the head. transformers
has no such model.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.core.errors import UserError
from workbench.core.files import read_object, write_json
from workbench.models.ctc.checkpoint import check_tensors
from workbench.models.ctc.students import renumbered
from workbench.models.ctc.tokens import CtcTokens, Units
from workbench.models.whisper.forward.passes import encode, encode_with_early
from workbench.models.whisper.loading.checkpoint import FEATURES, check_settings, checked_config, feature_settings

if TYPE_CHECKING:
    from transformers import WhisperConfig

MODEL_TYPE = "whisper_ctc"
UNITS: tuple[Units, ...] = ("characters", "bytes", "bpe")
ARCHITECTURE = "WhisperEncoderForCTC"
LAYERS = "model.encoder.layers."
# keys of Whisper's configuration that the encoder has
KEYS = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins", "max_source_positions",
        "activation_function", "scale_embedding", "vocab_size", "pad_token_id")  # fmt: skip
NO_DECODER = {
    "decoder_layers": 1,
    "decoder_ffn_dim": 1,
}  # what Whisper's configuration has besides, and nothing here uses
HEAD_SCALE = 0.02  # standard deviation of a new head's weights, as of other layers of Whisper


class WhisperEncoderForCTC(nn.Module):
    """Whisper's encoder, under the name that it has in a Whisper, and a linear head over its states."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        self.config = config
        self.model = nn.Module()
        self.model.encoder = WhisperEncoder(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size)

    def encode(self, features: Tensor, attention_mask: Tensor | None = None, checkpointing: bool = False) -> Tensor:
        """Encoder states of any number of frames up to 3,000. [clips, mels, frames] -> [clips, frames / 2, width]

        Features beyond a clip's positions are taken to be 0, as what is beyond the input's end is to a convolution.
        """
        like_whisper: Any = self  # the forward pass reads `model.encoder` and `config`
        return encode(like_whisper, _masked(features, attention_mask), attention_mask, checkpointing)

    def encode_with_early(
        self, features: Tensor, layer: int, attention_mask: Tensor | None = None, checkpointing: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`encode`, and the states after an earlier layer under the same norm. -> twice [clips, frames / 2, width]"""
        like_whisper: Any = self
        return encode_with_early(like_whisper, _masked(features, attention_mask), layer, attention_mask, checkpointing)

    def forward(self, features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits at each position. [clips, mels, frames] -> [clips, frames / 2, vocabulary]"""
        logits: Tensor = self.lm_head(self.encode(features, attention_mask))
        return logits


def _masked(features: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Features that are 0 beyond a clip's positions. [clips, mels, frames]"""
    return features if attention_mask is None else features * attention_mask.repeat_interleave(2, 1)[:, None]


def ctc_config(config: WhisperConfig, tokens: CtcTokens) -> WhisperConfig:
    """Configuration of a Whisper's encoder with a head over some tokens."""
    values = {key: value for key, value in config.to_dict().items() if key in KEYS}
    return _config(values | {"vocab_size": len(tokens.pieces), "pad_token_id": tokens.blank}, Path("config.json"))


def student_of(source: nn.Module, kept: list[int], tokens: CtcTokens) -> WhisperEncoderForCTC:
    """Some layers of a Whisper's encoder with a new head, or of another such model with its own; in eval mode.

    A new head's weights are random, from torch's generator, and its bias favours no token.
    """
    whole: Any = source
    config = ctc_config(whole.config, tokens)
    config.encoder_layers = config.num_hidden_layers = len(kept)
    student = WhisperEncoderForCTC(config)
    state = {
        name: value for name, value in whole.state_dict().items() if name.startswith(("model.encoder.", "lm_head."))
    }
    own = renumbered(state, LAYERS, kept)
    if not isinstance(source, WhisperEncoderForCTC):
        head = torch.randn(student.lm_head.weight.shape) * HEAD_SCALE
        own |= {"lm_head.weight": head, "lm_head.bias": torch.zeros(len(tokens.pieces))}
    student.load_state_dict(own)
    return student.float().eval()


def check_folder(folder: Path) -> tuple[WhisperConfig, Units]:
    """Check a checkpoint folder, all but its vocabulary and the values of its weights; raises UserError.

    Returns:
        Its configuration, and what its tokens are.
    """
    check_settings(folder)
    path = folder / "config.json"
    content = read_object(path, "a checkpoint's configuration")
    named = content.get("units")
    units = next((known for known in UNITS if known == named), None)
    if units is None:
        raise UserError(f"{path}: units is {str(named)[:60]}; expected {' or '.join(UNITS)}")
    config = _config({key: content[key] for key in KEYS if key in content}, path)
    source, features = feature_settings(folder)
    for key, expected in {**FEATURES, "feature_size": config.num_mel_bins}.items():
        if features.get(key, expected) != expected:
            raise UserError(f"{source}: {key} is {str(features[key])[:60]}; Whisper's features have {expected}")
    check_tensors(folder, lambda: WhisperEncoderForCTC(copy.deepcopy(config)))
    return config, units


def save(model: WhisperEncoderForCTC, tokens: CtcTokens, folder: Path) -> None:
    """Write weights, configuration and vocabulary."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    values = {key: value for key, value in model.config.to_dict().items() if key in KEYS}
    write_json(
        folder / "config.json",
        {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE], "units": tokens.units, **values},
    )
    write_json(folder / "vocab.json", tokens.by_name())


def _config(values: dict[str, Any], path: Path) -> WhisperConfig:
    blank = values.get("pad_token_id", 0)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "decoder_start_token_id", "pad_token_id"), blank)
    heads = {"decoder_attention_heads": values.get("encoder_attention_heads", 1)}
    none = {"suppress_tokens": None, "begin_suppress_tokens": None}
    return checked_config({**NO_DECODER, **heads, **none, **values, **ids, "model_type": "whisper"}, path)
