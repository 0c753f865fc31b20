"""WAV files to 16 kHz mono waves, with the standard library and numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from .wav import RATES, AudioError, Pcm, open_pcm

__all__ = ["SAMPLE_RATE", "AudioError", "Resampler", "Wave", "read_wav", "resample", "resampled"]
SAMPLE_RATE = 16_000  # hz
SINC_ZEROS = 16  # zero crossings of the resampling filter on each side
MAX_TAPS = 1 << 21  # filter taps that are computed at a time, 16 MB for each of a handful of temporary arrays

Wave = npt.NDArray[np.float32]  # [samples]


def read_wav(path: str | Path) -> Wave:
    """Read a WAV file of integers or floats, of any width, rate from 1 to 768 kHz and number of channels (see `wav.read_pcm`).

    Returns:
        [samples] at 16 kHz, full scale is 1.

    Raises:
        AudioError: no such file, not PCM WAV, a rate out of bounds, no samples, or samples that are not finite.
    """
    return resampled(open_pcm(path))


def resampled(recording: Pcm) -> Wave:
    """An open WAV file at 16 kHz [samples]; besides the result it takes a few MB, whatever the file's size. Raises as `Pcm.blocks`."""
    resampler = Resampler(recording.rate)
    wave = np.empty(int(recording.frames * SAMPLE_RATE / recording.rate), np.float32)
    at = 0
    for block in recording.blocks():
        at += _put(wave, at, resampler(block))
    _put(wave, at, resampler.finish())
    return wave


def _put(wave: Wave, at: int, part: Wave) -> int:
    """Write samples into a wave as far as it goes; returns their number."""
    there = wave[at : at + len(part)]
    there[:] = part[: len(there)]
    return len(there)


def resample(samples: Wave, rate: int) -> Wave:
    """Resample to 16 kHz with a Hann-windowed sinc, low-passed at the lower of both Nyquist frequencies. [samples]"""
    resampler = Resampler(rate)
    length = int(len(samples) * SAMPLE_RATE / rate)
    return np.concatenate([resampler(samples), resampler.finish()])[:length]


class Resampler:
    """A signal that comes in blocks, to 16 kHz; what comes out does not depend on where the blocks end.

    Args:
        rate: sample rate of the signal in Hz.

    Raises:
        AudioError: the rate is out of bounds.
    """

    def __init__(self, rate: int) -> None:
        if not RATES[0] <= rate <= RATES[1]:
            raise AudioError(f"the sample rate is {rate} Hz; expected {RATES[0]} to {RATES[1]} Hz")
        self.step = rate / SAMPLE_RATE  # samples of the signal to one that comes out
        self.cutoff = min(1.0, 1 / self.step)  # relative to the signal's Nyquist frequency
        self.reach = int(np.ceil(SINC_ZEROS / self.cutoff))
        self.kept = np.zeros(self.reach, np.float32)  # silence before the signal, later its end
        self.begun = -self.reach  # which sample of the signal `kept` begins with
        self.emitted = 0  # samples that came out

    def __call__(self, block: Wave) -> Wave:
        """Take the next samples; returns the output that they complete, which lags a little behind."""
        if self.step == 1:
            return block
        self.kept = np.concatenate([self.kept, block])
        last = self.begun + len(self.kept) - self.reach - 1  # the last place that has all its neighbours
        count = max(0, int(np.floor((last - 1) / self.step)) + 1 - self.emitted)
        # in parts, so that memory grows neither with the block nor with the filter, which is long at high rates
        size = max(1, MAX_TAPS // (2 * self.reach + 1))
        parts = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
        out = [self._at(self.emitted + part) for part in parts] or [np.zeros(0, np.float32)]
        self.emitted += count
        spare = int(self.emitted * self.step) - self.reach - self.begun
        if spare > 0:
            self.kept, self.begun = self.kept[spare:], self.begun + spare
        return np.concatenate(out)

    def finish(self) -> Wave:
        """End the signal; returns the rest."""
        return (
            self(np.zeros(self.reach + 3 + int(self.step), np.float32)) if self.step != 1 else np.zeros(0, np.float32)
        )

    def _at(self, places: npt.NDArray[np.int64]) -> Wave:
        """Output samples at the indices `places`."""
        position = places * self.step
        nearest = np.floor(position).astype(np.int64)
        offsets = np.arange(-self.reach, self.reach + 1)
        distance = position[:, None] - (nearest[:, None] + offsets)  # [places, taps]
        window = np.where(np.abs(distance) < self.reach, np.cos(np.pi * distance / (2 * self.reach)) ** 2, 0)
        taps = self.cutoff * np.sinc(self.cutoff * distance) * window
        out: Wave = (self.kept[nearest[:, None] + offsets - self.begun] * taps).sum(1).astype(np.float32)
        return out
