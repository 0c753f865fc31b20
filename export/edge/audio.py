"""WAV files to 16 kHz mono waves, with the standard library and numpy."""

from __future__ import annotations

import wave as wav
from pathlib import Path

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000  # hz
SINC_ZEROS = 16  # zero crossings of the resampling filter on each side

Wave = npt.NDArray[np.float32]  # [samples]


class AudioError(Exception):
    """A recording that cannot be used; the message says why and what to do."""


def read_wav(path: str | Path) -> Wave:
    """Read PCM WAV of any rate, width and number of channels; returns [samples] at 16 kHz in [-1, 1].

    Raises:
        AudioError: no such file, or not PCM WAV.
    """
    try:
        with wav.open(str(path), "rb") as file:
            channels, width, rate, _, _, _ = file.getparams()
            data = file.readframes(file.getnframes())
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file") from None
    except (wav.Error, EOFError) as error:
        raise AudioError(
            f"{path}: not PCM WAV ({error}); convert it, for example: ffmpeg -i IN -ac 1 -ar 16000 OUT.wav"
        ) from None
    data = data[: len(data) // (width * channels) * width * channels]  # a recording cut off inside a frame
    samples = _samples(data, width).reshape(-1, channels).mean(1)  # [samples]
    if not len(samples):
        raise AudioError(f"{path}: holds no samples")
    return resample(samples.astype(np.float32), rate)


def _samples(data: bytes, width: int) -> npt.NDArray[np.float32]:
    """PCM bytes to floats; 8-bit WAV is unsigned, wider ones are signed little-endian."""
    raw = np.frombuffer(data, np.uint8)
    if width == 1:
        return ((raw.astype(np.float32) - 128) / 128).astype(np.float32)
    padded = np.zeros((len(raw) // width, 4), np.uint8)
    padded[:, 4 - width :] = raw.reshape(-1, width)  # as the high bytes of 32-bit integers
    return (padded.view("<i4")[:, 0] / 2**31).astype(np.float32)


def resample(samples: Wave, rate: int) -> Wave:
    """Resample to 16 kHz with a Hann-windowed sinc, low-passed at the lower of both Nyquist frequencies. [samples]"""
    if rate == SAMPLE_RATE:
        return samples
    cutoff = min(1.0, SAMPLE_RATE / rate)  # relative to the source's Nyquist frequency
    reach = int(np.ceil(SINC_ZEROS / cutoff))
    padded = np.pad(samples, reach + 1)
    length = int(len(samples) * SAMPLE_RATE / rate)
    out = np.empty(length, np.float32)
    offsets = np.arange(-reach, reach + 1)
    for start in range(0, length, 1 << 16):  # in blocks, so that memory does not grow with the recording
        position = np.arange(start, min(start + (1 << 16), length)) * (rate / SAMPLE_RATE)
        nearest = np.floor(position).astype(np.int64)
        distance = position[:, None] - (nearest[:, None] + offsets)  # [block, taps]
        window = np.where(np.abs(distance) < reach, np.cos(np.pi * distance / (2 * reach)) ** 2, 0)
        taps = cutoff * np.sinc(cutoff * distance) * window
        out[start : start + len(position)] = (padded[nearest[:, None] + offsets + reach + 1] * taps).sum(1)
    return out
