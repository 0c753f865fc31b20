"""Encoder states of waves: features and the encoder in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.audio.decode import Wave
from workbench.models.protocol import Family


def encode_waves(
    family: Family, model: nn.Module, waves: Sequence[Wave], seconds: float, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Encoder states of some waves in one batch.

    Args:
        family: the model's.
        model: on the device.
        waves: each [samples] at 16 kHz.
        seconds: input length; each wave is followed by as much silence as the longest one.
        device: the one that computes.

    Returns:
        States [clips, positions, width], and the positions that each clip has, bool [clips, positions], as `Family.attention_mask`.
    """
    attention_mask = family.attention_mask([len(wave) for wave in waves], seconds)
    if attention_mask is not None:
        attention_mask = attention_mask.to(device)
    return family.encode(model, family.features(waves, seconds, device), attention_mask), attention_mask
