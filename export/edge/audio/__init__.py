"""Sound: WAV files, and resampling to 16 kHz."""

from .resample import SAMPLE_RATE, AudioError, Resampler, Wave, read_wav, resample, resampled

__all__ = ["SAMPLE_RATE", "AudioError", "Resampler", "Wave", "read_wav", "resample", "resampled"]
