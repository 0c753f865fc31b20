"""Uploads to waves: WAV with the runtime's own reader, any other format with PyAV if it is installed."""

from __future__ import annotations

import importlib.util
import logging
import mmap
from typing import BinaryIO

from export.edge import AudioError
from export.edge.audio import SAMPLE_RATE, Wave, resampled, wav
from export.serving.errors import ApiError
from workbench.audio import decode
from workbench.core.errors import UserError

RIFF = (b"RIFF", b"RF64")
SMALL = 1 << 16  # bytes up to which an upload is read; larger ones are mapped into memory
log = logging.getLogger("workbench")


def read_recording(upload: BinaryIO, name: str, longest: float) -> Wave:
    """Decode an uploaded recording.

    Args:
        upload: the uploaded file.
        name: its name in errors, which go to the client; it is not logged.
        longest: most seconds that are accepted.

    Returns:
        [samples] at 16 kHz.

    Raises:
        ApiError: 413 for a recording that is too long, 415 for a file that is no audio, 400 for one without enough samples.
    """
    name = name[:100] or "file"
    content = _content(upload)
    if not content:
        raise ApiError(400, f"{name}: the file is empty.", "invalid_audio", "file")
    try:
        wave = _decoded(content, name, longest)
    except (wav.TooLongError, decode.TooLongError) as error:
        raise ApiError(413, str(error), "audio_too_long", "file") from None
    except (AudioError, UserError) as error:
        raise ApiError(415, str(error), "invalid_audio", "file") from None
    if len(wave) < decode.SHORTEST_SECONDS * SAMPLE_RATE:
        shortest = f"{decode.SHORTEST_SECONDS:g} s"
        raise ApiError(
            400, f"{name}: lasts {len(wave) / SAMPLE_RATE:.3f} s; expected at least {shortest}.", "audio_too_short", "file"
        )  # fmt: skip
    return wave


def reads_all_formats() -> bool:
    """Whether formats other than WAV can be read."""
    return importlib.util.find_spec("av") is not None


def _content(upload: BinaryIO) -> bytes | mmap.mmap:
    """The upload's bytes; those of a large one stay in its file, so that they take no memory."""
    upload.seek(0, 2)
    size = upload.tell()
    upload.seek(0)
    if size <= SMALL:
        return upload.read()
    number = upload.fileno()
    upload.flush()
    return mmap.mmap(number, 0, access=mmap.ACCESS_READ)


def _decoded(content: bytes | mmap.mmap, name: str, longest: float) -> Wave:
    is_wav = content[:4] in RIFF
    if is_wav:  # with or without PyAV the same samples, which are those of `python -m edge`
        try:
            return _decoded_wav(wav.parse_pcm(content, name, longest))
        except wav.TooLongError:
            raise
        except AudioError:
            if not reads_all_formats():
                raise
    elif not reads_all_formats():
        raise AudioError(
            f"{name}: is not WAV; send WAV, or install PyAV on the server (pip install av) for other formats"
        )
    return decode.decode(content, name, longest)


def _decoded_wav(recording: wav.Pcm) -> Wave:
    if recording.shortfall:
        log.warning("an upload %s", recording.shortfall)
    return resampled(recording)
