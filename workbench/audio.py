"""Audio in: any file or encoded bytes to one 16 kHz mono wave."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from workbench.errors import UserError

SAMPLE_RATE = 16_000  # hz, what Whisper and the wav2vec2 family expect
SHORTEST_SECONDS = 0.1  # below this there is no word to recognise
LONGEST_SECONDS = 30.0  # Whisper's window; longer recordings need segmentation first

Wave = npt.NDArray[np.float32]  # [samples], 16 kHz mono in [-1, 1]


def decode(source: Path | bytes, name: str = "", longest: float | None = None) -> Wave:
    """Decode a file or encoded bytes of any format PyAV reads, mix to mono, resample to 16 kHz.

    Args:
        source: path of an audio or video file, or its encoded bytes.
        name: what to call it in an error; the path by default.
        longest: seconds after which decoding stops with an error, so that a long recording cannot fill the memory.

    Returns:
        float32 wave [samples] in [-1, 1].

    Raises:
        UserError: the file is missing, empty, not audio, too long, or broken before its first sample.
    """
    import av

    label = name or (str(source) if isinstance(source, Path) else "audio bytes")
    if isinstance(source, Path):
        if not source.is_file():
            raise UserError(f"{label}: no such audio file")
        if source.stat().st_size == 0:
            raise UserError(f"{label}: the audio file is empty")
    elif not source:
        raise UserError(f"{label}: the audio is empty")
    resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE)  # channels are averaged below; swr would add them up
    pieces: list[npt.NDArray[np.float32]] = []
    samples = 0
    try:
        with av.open(
            str(source) if isinstance(source, Path) else io.BytesIO(source), metadata_errors="ignore"
        ) as container:
            if not container.streams.audio:
                raise UserError(f"{label}: holds no audio stream; expected a speech recording")
            for frame in container.decode(audio=0):
                frame.pts = None  # broken time stamps must not make the resampler drop or insert samples
                new = [_mono(out.to_ndarray()) for out in resampler.resample(frame)]
                pieces += new
                samples += sum(map(len, new))
                if longest is not None and samples > longest * SAMPLE_RATE:
                    raise _too_long(label, longest, longest, at_least=True)
            pieces += [_mono(out.to_ndarray()) for out in resampler.resample(None)]
    except av.FFmpegError as error:
        # PyAV's message repeats the path; its first words say what is wrong.
        reason = str(error.strerror or error)
        raise UserError(
            f"{label}: cannot be decoded as audio ({reason}); expected WAV, FLAC, MP3, Opus, M4A or the like"
        ) from None
    if not any(map(len, pieces)):
        raise UserError(f"{label}: decodes to no samples; the recording is empty or cut off at its header")
    return np.concatenate(pieces).astype(np.float32, copy=False)


def _mono(channels: Wave) -> Wave:
    """Average of the channels; a frame is 20 ms, so one channel is taken as it is. [channels, samples] -> [samples]"""
    mono: Wave = channels[0] if len(channels) == 1 else channels.mean(0)
    return mono


def probe_seconds(source: Path | bytes) -> float:
    """Length of a recording from its header, decoding it only when the header does not say; raises UserError."""
    import av

    if source if isinstance(source, bytes) else source.stat().st_size:
        # what cannot be opened is left to decode, which names what is wrong
        with (
            contextlib.suppress(av.FFmpegError),
            av.open(
                str(source) if isinstance(source, Path) else io.BytesIO(source), metadata_errors="ignore"
            ) as container,
        ):
            if container.duration:
                return float(container.duration / av.time_base)
    return len(decode(source)) / SAMPLE_RATE


def change_speed(wave: Wave, speed: float) -> Wave:
    """Play a wave faster or slower, pitch included, by resampling. [samples] -> [samples / speed]"""
    import av

    # speed is rounded to what two whole rates can say: 1.1 is 17,600 hz read as 16,000
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
    frame.sample_rate = round(SAMPLE_RATE * speed)
    pieces = [out.to_ndarray()[0] for out in [*resampler.resample(frame), *resampler.resample(None)]]
    return np.concatenate(pieces).astype(np.float32, copy=False)


def check_length(wave: Wave, name: str) -> None:
    """Raise UserError if a wave is too short to hold a word or too long for one 30 s window."""
    seconds = len(wave) / SAMPLE_RATE
    if seconds < SHORTEST_SECONDS:
        raise UserError(f"{name}: lasts {seconds:.3f} s, expected at least {SHORTEST_SECONDS} s of speech")
    if seconds > LONGEST_SECONDS:
        raise _too_long(name, seconds, LONGEST_SECONDS)


def _too_long(name: str, seconds: float, longest: float, at_least: bool = False) -> UserError:
    lasts = f"{'more than ' * at_least}{seconds:,.1f} s"
    return UserError(f"{name}: lasts {lasts}, expected at most {longest:.0f} s; `workbench label` cuts long recordings")


def is_silent(wave: Wave) -> bool:
    """Whether a wave never rises above -60 dB of full scale."""
    return len(wave) == 0 or float(np.abs(wave).max()) < 1e-3


def write_wav(target: Path | BinaryIO, wave: Wave) -> None:
    """Write 16-bit PCM WAV at 16 kHz to a path or an open file."""
    import wave as wav

    pcm = (np.clip(wave, -1.0, 1.0) * 32767.0).round().astype("<i2")
    with wav.open(str(target) if isinstance(target, Path) else target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm.tobytes())


def write_flac(path: Path, wave: Wave) -> None:
    """Write 16-bit FLAC at 16 kHz."""
    import av

    pcm = (np.clip(wave, -1.0, 1.0) * 32767.0).round().astype(np.int16)
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
