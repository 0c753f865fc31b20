"""Neighbouring encoder states as one: half the positions from some layer on, and for the decoder.

Neighbouring 20 ms states are largely redundant. `pool_after` in the model's configuration sets after which layer they are pooled.
transformers keeps that key and ignores it: such a student must be run by code that reads it, as bundles do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import WhisperConfig


def pool_after(config: WhisperConfig) -> int:
    """Encoder layers after which states are pooled; 0 if they are not."""
    return int(getattr(config, "pool_after", None) or 0)


def pooled(states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Means of two neighbours; of one where the second is missing or padding.

    Args:
        states: [clips, positions, width].
        attention_mask: which positions a clip has, from its start, bool [clips, positions]; all by default.

    Returns:
        [clips, positions / 2 rounded up, width].
    """
    first = states[:, ::2]
    # the last one again, which becomes its own neighbour where it has none
    second = torch.cat([states, states[:, -1:]], 1)[:, 1::2]
    if attention_mask is not None:
        there = torch.cat([attention_mask, attention_mask[:, -1:]], 1)[:, 1::2]
        second = torch.where(there[..., None], second, first)
    return (first + second) / 2


def pooled_mask(attention_mask: Tensor) -> Tensor:
    """Which pooled states a clip has. bool [clips, positions] -> [clips, positions / 2 rounded up]"""
    return attention_mask[:, ::2]
