"""One spoken utterance and its transcript: the record that every corpus is read into."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from workbench.audio.decode import LONGEST_SECONDS, SAMPLE_RATE, Wave, change_speed, check_length, decode
from workbench.core.errors import UserError
from workbench.core.hashing import cached_sha256

SPLITS = ("train", "validation", "test")
# a part of the training clips: a weighting that looks ahead learns its weights on it, every other run trains on it
META = "meta"
GAP_SECONDS = 0.25  # silence between joined clips


@dataclass(frozen=True, slots=True)
class AudioSegment:
    """A stretch of a recording."""

    path: Path
    start: float  # seconds from the recording's start
    seconds: float

    def wave(self) -> Wave:
        """Decode to a 16 kHz mono wave [samples]; raises UserError for audio that cannot be used."""
        status = self.path.stat() if self.path.is_file() else None
        whole = _decoded(self.path, (status.st_size, status.st_mtime_ns) if status else None)
        first = round(self.start * SAMPLE_RATE)
        return whole[first : first + round(self.seconds * SAMPLE_RATE)].copy()


@functools.lru_cache(maxsize=1)  # neighbouring segments are often requested one after another
def _decoded(path: Path, _stamp: tuple[int, int] | None) -> Wave:
    return decode(path)


class Recording(TypedDict):
    """A manifest's fields that name a clip's recording."""

    audio: str  # absolute path
    offset: NotRequired[float]  # of a segment: seconds from the recording's start
    duration: NotRequired[float]  # of a segment, in seconds


@dataclass(frozen=True, slots=True)
class Utterance:
    """A clip of speech; its audio is decoded only when asked for."""

    id: str  # unique within the corpus
    # a file, a stretch of one, the encoded bytes of a streamed clip, or clips that are joined
    audio: Path | AudioSegment | bytes | tuple[Utterance, ...] = field(repr=False)
    text: str  # the reference transcript as it stands
    seconds: float
    language: str = "en"  # Whisper's code, or another ISO 639 code where Whisper does not support the language
    split: str = "train"
    scored: bool = True  # false: the reference is known to leave words out, so no system can be right about it
    speaker: str = ""  # whose voice it is, under whatever name the corpus gives; empty where that is not known
    speed: float = 1.0  # 1.1: played a tenth faster than recorded, pitch included
    where: str = field(
        default="", compare=False, repr=False
    )  # file and line, or dataset and row, that it was read from

    def wave(self) -> Wave:
        """Decode to a 16 kHz mono wave [samples]; raises UserError for audio that cannot be used."""
        if isinstance(self.audio, tuple):
            gap = np.zeros(round(GAP_SECONDS * SAMPLE_RATE), np.float32)
            pieces = [piece for clip in self.audio for piece in (gap, clip.wave())]
            wave: Wave = np.concatenate(pieces[1:])
        elif isinstance(self.audio, AudioSegment):
            wave = self.audio.wave()
        else:
            wave = decode(self.audio, self.name, LONGEST_SECONDS)
            self.check_stated(len(wave) / SAMPLE_RATE)
        if self.speed != 1.0:
            wave = change_speed(wave, self.speed)
        check_length(wave, self.name)
        return wave

    def check_stated(self, seconds: float) -> None:
        """Reject a recording whose length differs from its row's: the text may cover only a part of it.

        Seconds are the recording's, at whatever speed it is played.
        """
        stated = self.seconds * self.speed
        whole = not isinstance(self.audio, (AudioSegment, tuple))
        if whole and self.where and abs(stated - seconds) > max(0.5, 0.1 * stated):
            raise UserError(
                f"{self.place}: field 'duration' is {stated:g}, but the recording lasts {seconds:.2f} s; correct it, "
                "or add the field 'offset' (seconds, 0 for the recording's start) to take a part"
            )

    @property
    def name(self) -> str:
        """What to call this clip in a message."""
        if isinstance(self.audio, AudioSegment):
            return f"{self.audio.path} from {round(self.audio.start, 3)} s"
        return str(self.audio) if isinstance(self.audio, Path) else f"clip {self.id!r}"

    @property
    def place(self) -> str:
        """Where to correct this clip's text or language: file and line of its manifest, and the clip."""
        return f"{self.where}: {self.name}" if self.where else self.name

    def source(self) -> Recording | None:
        """A manifest's fields that name this clip's recording, `audio` absolute; None if no file on disk holds it."""
        if isinstance(self.audio, AudioSegment):
            path = str(self.audio.path.resolve())
            return {"audio": path, "offset": self.audio.start, "duration": self.audio.seconds}
        return {"audio": str(self.audio.resolve())} if isinstance(self.audio, Path) else None

    def identity(self) -> list[str]:
        """Key of everything computed from the clip: audio, transcript and language."""
        return [self.audio_sha256(), self.text, self.language]

    def audio_sha256(self) -> str:
        """Hex SHA-256 of the audio, which keys everything computed from it."""
        if isinstance(self.audio, Path):
            digest = cached_sha256(self.audio)
        elif isinstance(self.audio, AudioSegment):
            whole = cached_sha256(self.audio.path)
            digest = hashlib.sha256(f"{whole} {self.audio.start} {self.audio.seconds}".encode()).hexdigest()
        elif isinstance(self.audio, bytes):
            digest = hashlib.sha256(self.audio).hexdigest()
        else:
            digest = hashlib.sha256("".join(clip.audio_sha256() for clip in self.audio).encode()).hexdigest()
        return digest if self.speed == 1.0 else hashlib.sha256(f"{digest} {self.speed}".encode()).hexdigest()


def join_clips(clips: Sequence[Utterance]) -> Utterance:
    """Clips of one language as one utterance, with a short silence between them."""
    return Utterance(
        id="+".join(clip.id for clip in clips),
        audio=tuple(clips),
        text=" ".join(clip.text for clip in clips),
        seconds=sum(clip.seconds for clip in clips) + GAP_SECONDS * (len(clips) - 1),
        language=clips[0].language,
        split=clips[0].split,
    )
