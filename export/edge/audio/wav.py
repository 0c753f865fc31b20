"""PCM WAV files, as recorders, editors and pipes write them, to samples of one channel."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..bundle.fields import in_one_line

log = logging.getLogger("edge")
MAX_BYTES = 4 << 30  # of a file
LONGEST = 24 * 3600  # seconds
RATES = (1_000, 768_000)  # hz, the lowest and the highest that are read
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # format codes
LARGEST_FORMAT = 40  # bytes of a format chunk
BLOCK = 1 << 14  # values that are converted at a time
UNKNOWN = {0, 0xFFFFFFFF}  # data sizes left by a writer that cannot seek back to its header
CANCELS = 0.01  # of the loudest channel's level: if the channels' average is below it, they have opposite phases
AFTER_DATA = (
    b"LIST",
    b"id3 ",
    b"ID3 ",
    b"bext",
    b"iXML",
    b"cue ",
    b"smpl",
    b"JUNK",
    b"fact",
    b"PEAK",
    b"afsp",
    b"_PMX",
)
ADVICE = "convert it, for example: ffmpeg -i IN -ac 1 -ar 16000 OUT.wav"


class AudioError(Exception):
    """A recording that cannot be used; the message is one line that says why and what to do."""

    def __str__(self) -> str:
        return in_one_line(super().__str__())


class TooLongError(AudioError):
    """A recording that is longer than allowed."""


@dataclass(frozen=True)
class Format:
    """How samples are stored."""

    code: int
    channels: int
    rate: int  # hz
    width: int  # bytes of a sample


@dataclass(frozen=True)
class Pcm:
    """An open recording: its samples are converted as they are asked for, so that memory does not grow with the file."""

    name: str  # in errors
    stored: Format
    data: memoryview  # whole frames
    missing: int  # frames that the header announces beyond those

    @property
    def rate(self) -> int:
        """Sample rate in Hz."""
        return self.stored.rate

    @property
    def frames(self) -> int:
        """Samples of each channel."""
        return len(self.data) // (self.stored.width * self.stored.channels)

    @property
    def shortfall(self) -> str:
        """What is wrong with a file that is shorter than its header says; empty if it is not."""
        if not self.missing:
            return ""
        there, announced = self.frames / self.rate, (self.frames + self.missing) / self.rate
        return f"is cut off; it has {there:.2f} of {announced:.2f} s"

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Samples of one channel, block by block, full scale is 1; raises AudioError for samples that are not finite.

        Channels are averaged. Where they cancel each other (left = -right), the loudest one is taken.
        """
        channel = self._loudest_if_cancelling() if self.stored.channels > 1 else 0
        for block in self._channels():
            yield block.mean(1) if channel is None else np.ascontiguousarray(block[:, channel])

    def _loudest_if_cancelling(self) -> int | None:
        """The loudest channel if the channels cancel each other, else None."""
        power, powers = 0.0, np.zeros(self.stored.channels)
        for block in self._channels():
            powers += np.square(block, dtype=np.float64).sum(0)
            power += float(np.square(block.mean(1), dtype=np.float64).sum())
        loudest = int(np.argmax(powers))
        return loudest if np.sqrt(power) < CANCELS * np.sqrt(powers[loudest]) else None

    def _channels(self) -> Iterator[npt.NDArray[np.float32]]:
        """Blocks of all channels, [samples, channels]."""
        size = max(1, BLOCK // self.stored.channels)
        frame = self.stored.width * self.stored.channels
        for begin in range(0, self.frames, size):
            block = _floats(self.data[begin * frame : (begin + size) * frame], self.stored)
            finite = np.isfinite(block).all(1)
            if not finite.all():
                at = (begin + int(np.argmin(finite))) / self.rate
                raise AudioError(
                    f"{self.name}: holds samples that are NaN or infinite, the first at {at:.3f} s; repair or convert it"
                )
            yield block


def read_pcm(path: str | Path) -> tuple[npt.NDArray[np.float32], int]:
    """Read a WAV file of 8 to 32-bit integers or 32 or 64-bit floats, as `Pcm.blocks` gives it.

    A file that is shorter than its header says is read as far as it goes, with a warning.

    Returns:
        Samples of one channel, full scale is 1 [samples], and their rate in Hz.

    Raises:
        AudioError: no such file, not PCM WAV, a rate out of bounds, no samples, or samples that are not finite.
    """
    opened = open_pcm(path)
    samples = np.empty(opened.frames, np.float32)
    at = 0
    for block in opened.blocks():
        samples[at : at + len(block)] = block
        at += len(block)
    return samples, opened.rate


def open_pcm(path: str | Path) -> Pcm:
    """A WAV file, its samples still to be converted; warns and raises as `read_pcm` does."""
    try:
        if Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir():  # a pipe might never end
            raise AudioError(f"{path}: is not a regular file; save it as one first")
        if (size := Path(path).stat().st_size) > MAX_BYTES:
            raise AudioError(f"{path}: has {size} bytes; expected at most {MAX_BYTES}, cut it first")
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file") from None
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror})") from None
    opened = parse_pcm(content, str(path))
    if opened.shortfall:
        log.warning("%s: %s", in_one_line(str(path)), opened.shortfall)
    return opened


def parse_pcm(content: bytes | mmap, name: str, longest: float = LONGEST) -> Pcm:
    """The bytes of a WAV file, or a file mapped into memory, as an open recording. Logs nothing.

    Args:
        content: the whole file.
        name: its name in errors.
        longest: seconds; a longer recording raises TooLongError.

    Raises:
        AudioError: as `read_pcm`, but for samples that are not finite, which `Pcm.blocks` finds.
    """
    try:
        stored, data, missing = _parsed(content)
    except (ValueError, struct.error) as error:
        raise AudioError(f"{name}: not PCM WAV ({error}); {ADVICE}") from None
    if not RATES[0] <= stored.rate <= RATES[1]:
        raise AudioError(f"{name}: its sample rate is {stored.rate} Hz; expected {RATES[0]} to {RATES[1]} Hz; {ADVICE}")
    frame = stored.width * stored.channels
    frames = len(data) // frame
    if not frames:
        raise AudioError(f"{name}: holds no samples")
    if frames / stored.rate > longest:
        raise TooLongError(f"{name}: lasts {frames / stored.rate:.0f} s; expected at most {longest:g} s, cut it first")
    return Pcm(name, stored, data[: frames * frame], missing // frame)


def _parsed(content: bytes | mmap) -> tuple[Format, memoryview, int]:
    """Format and samples of a file, and how many bytes are missing from what its header announces; raises ValueError."""
    if content[:4] not in (b"RIFF", b"RF64") or content[8:12] != b"WAVE":
        raise ValueError("it has no RIFF header")
    stored: Format | None = None
    long_size: int | None = None  # of the samples, in RF64
    at = 12
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        at += 8
        if name == b"ds64" and size >= 16:
            long_size = struct.unpack_from("<Q", content, at + 8)[0]
        elif name == b"fmt ":
            stored = _format(content[at : at + min(size, LARGEST_FORMAT)])
        elif name == b"data":
            if stored is None:
                raise ValueError("its samples come before their format")
            size = long_size if long_size is not None and size == 0xFFFFFFFF else size
            there = len(content) - at
            if size in UNKNOWN:
                size = 0 if size == 0 and content[at : at + 4] in AFTER_DATA else there
            return stored, memoryview(content)[at : at + size], max(0, size - there)
        at += size
        # chunks begin at even offsets; writers that forget the padding byte continue directly with the next name
        if size % 2 and not (content[at : at + 4].isalnum() or content[at : at + 4] == b"fmt "):
            at += 1
    raise ValueError("it has no samples" if stored else "it has no format")


def _format(chunk: bytes) -> Format:
    code, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", chunk)
    if code == EXTENSIBLE and len(chunk) >= 26:
        code = struct.unpack_from("<H", chunk, 24)[0]  # the subformat's first bytes
    if not channels:
        raise ValueError("it has 0 channels")
    width = align // channels if align and align % channels == 0 else -(-bits // 8)
    if bits > 8 * width:
        width = -(-bits // 8)
    if (code == PCM and width in (1, 2, 3, 4)) or (code == FLOAT and width in (4, 8)):
        return Format(code, channels, rate, width)
    if code in (PCM, FLOAT):
        kind = "integers" if code == PCM else "floats"
        raise ValueError(f"{kind} of {bits} bits; expected integers of 8 to 32 bits or floats of 32 or 64")
    raise ValueError(f"its coding is number {code}; expected {PCM} (integers) or {FLOAT} (floats)")


def _floats(data: memoryview, stored: Format) -> npt.NDArray[np.float32]:
    """Samples as floats, full scale is 1. -> [samples, channels]"""
    if stored.code == FLOAT:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused
            return np.frombuffer(data, f"<f{stored.width}").astype(np.float32).reshape(-1, stored.channels)
    raw = np.frombuffer(data, np.uint8)
    samples: npt.NDArray[np.floating]
    if stored.width == 1:  # 8-bit WAV is unsigned, wider ones are signed little-endian
        samples = (raw.astype(np.float32) - 128) / 128
    elif stored.width in (2, 4):
        samples = raw.view(f"<i{stored.width}").astype(np.float32) / np.float32(2 ** (8 * stored.width - 1))
    else:
        widened = np.zeros((len(raw) // 3, 4), np.uint8)
        widened[:, 1:] = raw.reshape(-1, 3)  # as the high bytes of 32-bit integers
        samples = widened.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
    return samples.astype(np.float32, copy=False).reshape(-1, stored.channels)
