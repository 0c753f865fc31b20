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
    resampler = Resampler(rate)
    length = int(len(samples) * SAMPLE_RATE / rate)
    return np.concatenate([resampler(samples), resampler.finish()])[:length]


class Resampler:
    """A signal that comes in blocks, to 16 kHz; what comes out does not depend on where the blocks end.

    Args:
        rate: of the signal, in Hz.
    """

    def __init__(self, rate: int) -> None:
        self.step = rate / SAMPLE_RATE  # samples of the signal to one that comes out
        self.cutoff = min(1.0, 1 / self.step)  # relative to the signal's Nyquist frequency
        self.reach = int(np.ceil(SINC_ZEROS / self.cutoff))
        self.kept = np.zeros(self.reach, np.float32)  # silence before the signal, later its end
        self.begun = -self.reach  # which sample of the signal `kept` begins with
        self.told = 0  # samples that came out

    def __call__(self, block: Wave) -> Wave:
        """Take the next samples; returns those that they complete, a little fewer than their share."""
        if self.step == 1:
            return block
        self.kept = np.concatenate([self.kept, block])
        last = self.begun + len(self.kept) - self.reach - 1  # the last place that has all its neighbours
        count = max(0, int(np.floor((last - 1) / self.step)) + 1 - self.told)
        # in parts, so that memory does not grow with the block
        parts = [np.arange(start, min(start + (1 << 16), count)) for start in range(0, count, 1 << 16)]
        out = [self._at(self.told + part) for part in parts] or [np.zeros(0, np.float32)]
        self.told += count
        spare = int(self.told * self.step) - self.reach - self.begun
        if spare > 0:
            self.kept, self.begun = self.kept[spare:], self.begun + spare
        return np.concatenate(out)

    def finish(self) -> Wave:
        """Say that nothing more comes; returns the rest."""
        return (
            self(np.zeros(self.reach + 3 + int(self.step), np.float32)) if self.step != 1 else np.zeros(0, np.float32)
        )

    def _at(self, places: npt.NDArray[np.int64]) -> Wave:
        """Samples number `places` of those that come out."""
        position = places * self.step
        nearest = np.floor(position).astype(np.int64)
        offsets = np.arange(-self.reach, self.reach + 1)
        distance = position[:, None] - (nearest[:, None] + offsets)  # [places, taps]
        window = np.where(np.abs(distance) < self.reach, np.cos(np.pi * distance / (2 * self.reach)) ** 2, 0)
        taps = self.cutoff * np.sinc(self.cutoff * distance) * window
        out: Wave = (self.kept[nearest[:, None] + offsets - self.begun] * taps).sum(1).astype(np.float32)
        return out
