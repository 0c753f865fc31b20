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
    before = int(config.get("pool_after") or config["encoder_layers"])

    def layer(at: int) -> int:
        return 2 * at * (4 * width**2 + 2 * width * ffn) + 4 * at**2 * width

    read = states_of(config, positions)
    crossed = int(config["decoder_layers"]) * 2 * (2 * read * width**2)
    return convolutions + before * layer(positions) + (int(config["encoder_layers"]) - before) * layer(read) + crossed


def states_of(config: Mapping[str, Any], positions: int) -> int:
    """States that the encoder makes of so many positions: half as many where it pools them."""
    return -(-positions // 2) if config.get("pool_after") else positions


def token_flops(config: Mapping[str, Any], positions: int, before: int = 0) -> int:
    """Operations of one decoder step: a token after `before` others, reading the states of so many positions, and its projection."""
    positions = states_of(config, positions)
    width, ffn = int(config["d_model"]), int(config["decoder_ffn_dim"])
    layer = 2 * (6 * width**2 + 2 * width * ffn) + 4 * width * (positions + before + 1)
    return int(config["decoder_layers"]) * layer + 2 * width * int(config["vocab_size"])
