"""Audio in: any file or encoded bytes to one 16 kHz mono wave."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from workbench.core.errors import UserError

SAMPLE_RATE = 16_000  # hz, what Whisper and the wav2vec2 family expect
SHORTEST_SECONDS = 0.1  # below this there is no word to recognise
LONGEST_SECONDS = 30.0  # Whisper's window; longer recordings need segmentation first
LONGEST_RECORDING_HOURS = 6.0  # 1.4 GB at 16 kHz, which 4 MB of compressed silence can decode to
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # hz; resampling from a few hz would fill the memory
LOUDEST = 100.0  # full scale is 1; anything beyond this is damage, or integers that were read as floats
CANCELLED = 1e-6  # share of the loudest channel's power that is left when channels cancel each other (-60 dB)
# FFmpeg's names of the file formats that are read.
FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,avr,caf,dts,eac3,flac,flv,g722,g726,gsm,ircam,latm,loas,matroska,mlp,mov,mp3,mpc,mpc8,"
    "mpeg,mpegts,nistsphere,ogg,oma,rm,sln,tak,truehd,tta,voc,w64,wav,wsd,wv,xwma"
)

Wave = npt.NDArray[np.float32]  # [samples], 16 kHz mono in [-1, 1]


class TooLongError(UserError):
    """A recording that is longer than allowed."""


def decode(source: Path | bytes | mmap, name: str = "", longest: float = LONGEST_RECORDING_HOURS * 3600) -> Wave:
    """Decode a file or encoded bytes of any format PyAV reads, mix to mono, resample to 16 kHz.

    Args:
        source: path of an audio or video file, its encoded bytes, or a file mapped into memory.
        name: what to call it in an error; the path by default.
        longest: seconds after which decoding stops with an error, so that a long recording cannot fill the memory.

    Returns:
        float32 wave [samples]: the mean of the channels, or the loudest one where they cancel each other (left = -right).

    Raises:
        UserError: the file is missing, not a regular file, empty, not audio, too long, of an impossible sample rate, holds samples that are
            not finite, or is broken before its first sample.
    """
    label = name or (str(source) if isinstance(source, Path) else "audio bytes")
    wave, power, powers = _mixed(source, label, longest)
    if not len(wave):
        raise UserError(f"{label}: decodes to no samples; the recording is empty or cut off at its header")
    if power < CANCELLED * float(powers.max()):
        del wave  # before the next one takes memory
        wave, _, _ = _mixed(source, label, longest, channel=int(powers.argmax()))
    return wave


def _mixed(
    source: Path | bytes | mmap, label: str, longest: float, channel: int | None = None
) -> tuple[Wave, float, npt.NDArray[np.float64]]:
    """The audio stream as one wave, of one channel or the mean of all; the sum of its squares, and of each channel's."""
    import av

    # Packed samples, because PyAV crashes on frames of more than eight planes. Channels are averaged here: swr would add them up.
    resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE)
    pieces: list[Wave] = []
    power, powers = 0.0, np.zeros(1)
    samples = 0
    with _opened(source, label) as container:
        for frame in chain(container.decode(audio=0), [None]):
            if frame is not None:
                _check_rate(frame.sample_rate, label)  # a frame's may differ from the header's
                frame.pts = None  # broken time stamps must not make the resampler drop or insert samples
            for out in resampler.resample(frame):
                channels = out.to_ndarray().reshape(-1, out.layout.nb_channels)  # [samples, channels]
                if not np.abs(channels).max(initial=0.0) <= LOUDEST:  # written so that NaN fails, too
                    raise UserError(
                        f"{label}: holds samples that are NaN, infinite or above {LOUDEST:g}; expected -1 to 1"
                    )
                powers = powers + np.square(channels, dtype=np.float64).sum(0)
                piece = channels.mean(1) if channel is None else np.ascontiguousarray(channels[:, channel])
                power += float(np.square(piece, dtype=np.float64).sum())
                pieces.append(piece.astype(np.float32, copy=False))
                samples += len(channels)
            if samples > longest * SAMPLE_RATE:
                raise _too_long(label, longest, longest, at_least=True)
    wave = np.empty(samples, np.float32)
    end = samples
    while pieces:  # from the last one, each freed once it is copied: hours of speech are not held twice
        piece = pieces.pop()
        wave[end - len(piece) : end] = piece
        end -= len(piece)
    return wave, power, powers


def _check_rate(rate: int, label: str) -> None:
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise UserError(f"{label}: has a sample rate of {rate:,} Hz; expected {LOWEST_RATE:,} to {HIGHEST_RATE:,} Hz")


@contextmanager
def _opened(source: Path | bytes | mmap, label: str) -> Iterator[Any]:
    """An open recording with an audio stream; what FFmpeg finds wrong with it, now or while it is read, becomes a UserError."""
    import av

    if isinstance(source, Path) and not os.path.isfile(source):  # noqa: PTH113  # false also for names that no file can have
        what = "is not a regular file" if os.path.exists(source) else "no such audio file"  # noqa: PTH110
        if os.path.isdir(source):  # noqa: PTH112
            what = "is a folder; name the files in it"
        raise UserError(f"{label}: {what}")
    if not (source.stat().st_size if isinstance(source, Path) else source):
        raise UserError(f"{label}: the audio file is empty")
    try:
        # playlists and other formats that make FFmpeg open further files or addresses are not among the formats
        with av.open(
            # an absolute path, because in a relative one FFmpeg takes what precedes a colon for a protocol
            str(source.absolute()) if isinstance(source, Path) else _readable(source),
            metadata_errors="ignore",
            options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
        ) as container:
            if not container.streams.audio:
                raise UserError(f"{label}: holds no audio stream; expected a speech recording")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise UserError(f"{label}: its audio codec is not known here; convert it to WAV")
            _check_rate(stream.rate or 0, label)
            yield container
    except av.FFmpegError as error:
        # PyAV's message repeats the path; its first words say what is wrong.
        reason = str(error.strerror or error)
        raise UserError(
            f"{label}: cannot be decoded as audio ({reason}); expected WAV, FLAC, MP3, Opus, M4A or the like"
        ) from None
    except ValueError as error:  # the resampler's, where a stream's format changes
        raise UserError(
            f"{label}: changes its sample rate or channels in the middle ({error}); convert it to WAV"
        ) from None


def _readable(content: bytes | mmap) -> io.BytesIO | mmap:
    """Encoded bytes as a file at its beginning."""
    if isinstance(content, bytes):
        return io.BytesIO(content)
    content.seek(0)
    return content


def probe_seconds(source: Path | bytes) -> float:
    """Length of a recording's audio stream, from its packets: a container's header may give a video's length, or a guess.

    Raises:
        UserError: as `decode`.
    """
    label = str(source) if isinstance(source, Path) else "audio bytes"
    with _opened(source, label) as container:
        stream = container.streams.audio[0]
        total, complete = 0, True
        for packet in container.demux(stream):
            if packet.size:
                total += packet.duration or 0
                complete = complete and bool(packet.duration)
                if total * stream.time_base > LONGEST_RECORDING_HOURS * 3600:
                    raise _too_long(
                        label, LONGEST_RECORDING_HOURS * 3600, LONGEST_RECORDING_HOURS * 3600, at_least=True
                    )
        seconds = float(total * stream.time_base)
    # Packets count a codec's delay, too: up to a tenth of a second, which must not push a clip over the limit.
    if not complete or seconds <= 0 or LONGEST_SECONDS < seconds < LONGEST_SECONDS + 0.5:
        return len(decode(source)) / SAMPLE_RATE
    return seconds


def change_speed(wave: Wave, speed: float) -> Wave:
    """Play a wave faster or slower, pitch included, by resampling. [samples] -> [samples / speed]"""
    import av

    # speed is rounded to a ratio of whole rates: 1.1 is 17,600 Hz read as 16,000
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


def _too_long(name: str, seconds: float, longest: float, at_least: bool = False) -> TooLongError:
    lasts = f"{'more than ' * at_least}{seconds:,.1f} s"
    remedy = (
        "cut it, with ffmpeg for example" if longest > LONGEST_SECONDS else "`workbench label` cuts long recordings"
    )
    return TooLongError(f"{name}: lasts {lasts}, expected at most {longest:,.0f} s; {remedy}")


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


def write_flac(target: Path | BinaryIO, wave: Wave) -> None:
    """Write 16-bit FLAC at 16 kHz to a path or an open file."""
    import av

    pcm = (np.clip(wave, -1.0, 1.0) * 32767.0).round().astype(np.int16)
    with av.open(str(target) if isinstance(target, Path) else target, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
