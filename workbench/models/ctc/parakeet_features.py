"""Parakeet's log-mel features at the true length of every clip of a batch, as transformers' ParakeetFeatureExtractor computes them for a clip by itself.

Pre-emphasis, Hann windows of 25 ms every 10 ms, power, mel filters, natural logarithm; then each mel band is brought to mean 0 and variance 1
over a clip's own frames. The short-time Fourier transform is a strided convolution, as in Whisper's features (whisper/forward/log_mel.py).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_FFT = 512
WINDOW = 400  # samples of a window, 25 ms
HOP_LENGTH = 160  # samples from one frame to the next, 10 ms
GUARD = 2.0**-24  # added to a mel band's power before the logarithm
EPSILON = 1e-5  # added to a band's standard deviation
LEAST_FRAMES = 2  # a variance needs two
SHORTEST = LEAST_FRAMES * HOP_LENGTH  # samples; a shorter wave is followed by silence


def frames_of(samples: int) -> int:
    """Frames (10 ms each) of a wave of this many samples."""
    return max(samples, SHORTEST) // HOP_LENGTH


class ParakeetLogMel(nn.Module):
    """Waves to normalised log-mel features.

    Args:
        mels: number of mel bands.
        preemphasis: share of the sample before that is taken from each; 0 for none.
    """

    basis: Tensor
    filters: Tensor

    def __init__(self, mels: int, preemphasis: float) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.mels, self.preemphasis = mels, preemphasis
        window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64)
        bins = torch.arange(N_FFT // 2 + 1, dtype=torch.float64)
        angle = 2 * np.pi * bins[:, None] * torch.arange(WINDOW, dtype=torch.float64) / N_FFT  # [bins, samples]
        basis = torch.cat([torch.cos(angle), -torch.sin(angle)]) * window  # [2 * bins, samples]
        filters = mel_filter_bank(len(bins), mels, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
        self.register_buffer("basis", basis.float()[:, None], persistent=False)  # [2 * bins, 1, samples]
        self.register_buffer("filters", torch.from_numpy(filters.T).float(), persistent=False)  # [mels, bins]

    def forward(self, padded: Tensor, samples: Tensor, heard: Tensor) -> Tensor:
        """Compute features.

        Args:
            padded: waves with silence after them [clips, samples].
            samples: length of each clip without the silence after it, int64 [clips].
            heard: the same with the silence that belongs to it.

        Returns:
            [clips, mels + 1, frames]: features, 0 in the padding of shorter clips, and a last row that is 1 where a clip has frames.
        """
        padded = F.pad(padded.float(), (0, max(0, SHORTEST - padded.shape[1])))
        whole = padded.shape[1]
        heard = heard.clamp(min=SHORTEST, max=whole)
        before = F.pad(padded[:, :-1], (1, 0))
        waves = (padded - self.preemphasis * before) * (torch.arange(whole, device=padded.device) < heard[:, None])
        count = whole // HOP_LENGTH
        spectrum = F.conv1d(waves[:, None], self.basis, stride=HOP_LENGTH, padding=WINDOW // 2)[..., :count]
        real, imaginary = spectrum.chunk(2, dim=1)
        power = self.filters @ (real * real + imaginary * imaginary)  # [clips, mels, frames]
        # log(power + GUARD), less a constant that goes with the mean, so that silence is exactly 0
        log = (power / GUARD).log1p()
        frames = torch.arange(count, device=padded.device)
        own = (samples // HOP_LENGTH).clamp(min=LEAST_FRAMES)[:, None, None]
        spoken = (frames < own).float()
        mean = (log * spoken).sum(2, keepdim=True) / own
        variance = ((log - mean).square() * spoken).sum(2, keepdim=True) / (own - 1)
        marks = (frames < (heard // HOP_LENGTH)[:, None]).float()[:, None]  # [clips, 1, frames]
        return torch.cat([(log - mean) / (variance.sqrt() + EPSILON) * marks, marks], 1)
