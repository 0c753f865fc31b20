"""Floating-point operations of a Whisper model, counted from its sizes: a multiplication and an addition are two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def encoder_flops(config: Mapping[str, Any], positions: int) -> int:
    """Operations of convolutions, encoder layers, and the decoder's keys and values of the states.

    Args:
        config: a checkpoint's or bundle's config.json.
        positions: of 20 ms.
    """
    width, ffn, mels = (int(config[k]) for k in ("d_model", "encoder_ffn_dim", "num_mel_bins"))
    convolutions = 2 * 3 * width * (2 * positions * mels + positions * width)
    layer = 2 * positions * (4 * width**2 + 2 * width * ffn) + 4 * positions**2 * width
    crossed = int(config["decoder_layers"]) * 2 * (2 * positions * width**2)
    return convolutions + int(config["encoder_layers"]) * layer + crossed


def token_flops(config: Mapping[str, Any], positions: int, before: int = 0) -> int:
    """Operations of one decoder step: a token after `before` others, reading so many positions, and its projection."""
    width, ffn = int(config["d_model"]), int(config["decoder_ffn_dim"])
    layer = 2 * (6 * width**2 + 2 * width * ffn) + 4 * width * (positions + before + 1)
    return int(config["decoder_layers"]) * layer + 2 * width * int(config["vocab_size"])
