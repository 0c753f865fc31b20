"""Whisper's log-mel features as one torch module, used in training and exported as the bundle's `frontend.onnx`.

The short-time Fourier transform is a strided convolution with windowed cosines and sines, because every ONNX runtime
runs a convolution and few run STFT. Checked against transformers' WhisperFeatureExtractor in the tests.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_FFT = 400  # samples in a window: 25 ms
HOP_LENGTH = 160  # samples from one frame to the next: 10 ms
SAMPLES_PER_POSITION = 2 * HOP_LENGTH  # the encoder's second convolution halves the frames: 20 ms per position
DYNAMIC_RANGE = 8.0  # log10 units kept below a clip's loudest bin


class LogMel(nn.Module):
    """Log-mel spectrogram, [clips, samples] at 16 kHz to [clips, mels, frames] with frames = samples // 160.

    As in Whisper: Hann window, power, mel filters, log10 floored 8 below the clip's maximum, then (x + 4) / 4.
    """

    basis: Tensor
    filters: Tensor

    def __init__(self, mels: int = 80) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        window = torch.hann_window(N_FFT, periodic=True, dtype=torch.float64)
        bins = torch.arange(N_FFT // 2 + 1, dtype=torch.float64)
        angle = 2 * np.pi * bins[:, None] * torch.arange(N_FFT, dtype=torch.float64) / N_FFT  # [bins, samples]
        basis = torch.cat([torch.cos(angle), -torch.sin(angle)]) * window  # [2 * bins, samples]
        filters = mel_filter_bank(len(bins), mels, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
        self.register_buffer("basis", basis.float()[:, None], persistent=False)  # [2 * bins, 1, samples]
        self.register_buffer("filters", torch.from_numpy(filters.T).float(), persistent=False)  # [mels, bins]

    def forward(self, waves: Tensor) -> Tensor:
        """Compute features of waves padded to a common length. [clips, samples] -> [clips, mels, frames]"""
        padded = F.pad(waves[:, None], (N_FFT // 2, N_FFT // 2), mode="reflect")
        spectrum = F.conv1d(padded, self.basis, stride=HOP_LENGTH)[..., :-1]  # [clips, 2 * bins, frames]
        real, imaginary = spectrum.chunk(2, dim=1)
        mel = self.filters @ (real * real + imaginary * imaginary)  # [clips, mels, frames]
        log = mel.clamp(min=1e-10).log10()
        loudest = log.amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(log, loudest - DYNAMIC_RANGE) + 4.0) / 4.0


def positions_of(samples: int) -> int:
    """Number of encoder positions (20 ms each) that a wave of this length touches."""
    return -(-samples // SAMPLES_PER_POSITION)
