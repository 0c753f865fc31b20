"""Augmentation of the student's input. The teacher's targets stay those of the clean clip, so the cache stays valid."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workbench.config.sections import AugmentRecipe


def add_noise(waves: Tensor, lengths: Tensor, settings: AugmentRecipe, draw: np.random.Generator) -> Tensor:
    """Add coloured noise to a share of the clips, at a random ratio of speech to noise.

    Args:
        waves: padded waves [clips, samples]; the padding gets the noise too, as in a real recording.
        lengths: samples of each clip [clips].
        settings: how often and how loud.
        draw: source of randomness.

    Returns:
        Waves of the same shape.
    """
    if not settings.noise_probability:
        return waves
    out = waves.clone()
    for row, length in zip(out, lengths.tolist(), strict=True):
        if draw.random() >= settings.noise_probability:
            continue
        noise = torch.from_numpy(_coloured(len(row), draw.uniform(0.0, 1.0), draw)).to(row)
        decibels = draw.uniform(settings.snr_db[0], settings.snr_db[1])
        speech = row[:length].square().mean().sqrt()
        row += noise * speech * 10 ** (-decibels / 20)
    return out.clamp(-1, 1)


def _coloured(samples: int, exponent: float, draw: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Noise of unit power whose power falls with frequency^exponent: 0 is white, 1 is pink. [samples]"""
    spectrum = np.fft.rfft(draw.standard_normal(samples))
    frequencies = np.maximum(np.arange(len(spectrum)), 1)
    noise = np.fft.irfft(spectrum / frequencies ** (exponent / 2), samples)
    return (noise / max(float(np.sqrt(np.mean(noise**2))), 1e-9)).astype(np.float32)


def spec_augment(features: Tensor, settings: AugmentRecipe, draw: np.random.Generator, mels: int) -> Tensor:
    """SpecAugment (arXiv 1904.08779) without time warping: blank bands and stretches of each clip's features.

    Args:
        features: [clips, rows, frames].
        settings: how many masks of which largest width.
        draw: source of randomness.
        mels: rows that are mel bands, the first ones; others stay as they are.

    Returns:
        Features of the same shape; masked places have the clip's mean.
    """
    if not settings.frequency_masks and not settings.time_masks:
        return features
    out = features.clone()
    frames = features.shape[2]
    bands = out[:, :mels]
    for clip, mean in zip(bands, features[:, :mels].mean((1, 2)), strict=True):
        for _ in range(settings.frequency_masks):
            width = int(draw.integers(0, settings.frequency_mask_bins + 1))
            start = int(draw.integers(0, max(1, mels - width)))
            clip[start : start + width] = mean
        for _ in range(settings.time_masks):
            # never more than a fifth of a clip at once: short commands would lose whole words
            width = int(draw.integers(0, min(settings.time_mask_frames, frames // 5) + 1))
            start = int(draw.integers(0, max(1, frames - width)))
            clip[:, start : start + width] = mean
    return out
