"""One spoken utterance and its transcript: the record that every corpus is read into."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from workbench.audio import LONGEST_SECONDS, SAMPLE_RATE, Wave, change_speed, check_length, decode
from workbench.files import file_sha256

SPLITS = ("train", "validation", "test")
GAP_SECONDS = 0.25  # silence between joined clips


@dataclass(frozen=True, slots=True)
class Utterance:
    """A clip of speech; its audio is decoded only when asked for."""

    id: str  # unique within the corpus
    # a file, the encoded bytes of a streamed clip, or clips that are joined
    audio: Path | bytes | tuple[Utterance, ...] = field(repr=False)
    text: str  # the reference transcript as it stands
    seconds: float
    language: str = "en"  # ISO 639-1
    split: str = "train"
    scored: bool = True  # false: the reference is known to leave words out, so no system can be right about it
    speed: float = 1.0  # 1.1: played a tenth faster than recorded, pitch included

    def wave(self) -> Wave:
        """Decode to a 16 kHz mono wave [samples]; raises UserError for audio that cannot be used."""
        if isinstance(self.audio, tuple):
            gap = np.zeros(round(GAP_SECONDS * SAMPLE_RATE), np.float32)
            pieces = [piece for clip in self.audio for piece in (gap, clip.wave())]
            wave: Wave = np.concatenate(pieces[1:])
        else:
            wave = decode(self.audio, self.name, LONGEST_SECONDS)
        if self.speed != 1.0:
            wave = change_speed(wave, self.speed)
        check_length(wave, self.name)
        return wave

    @property
    def name(self) -> str:
        """What to call this clip in a message."""
        return str(self.audio) if isinstance(self.audio, Path) else f"clip {self.id!r}"

    def audio_sha256(self) -> str:
        """Hex SHA-256 of what is heard, which keys everything computed from it."""
        if isinstance(self.audio, Path):
            digest = file_sha256(self.audio)
        elif isinstance(self.audio, bytes):
            digest = hashlib.sha256(self.audio).hexdigest()
        else:
            digest = hashlib.sha256("".join(clip.audio_sha256() for clip in self.audio).encode()).hexdigest()
        return digest if self.speed == 1.0 else hashlib.sha256(f"{digest} {self.speed}".encode()).hexdigest()


def joined(clips: Sequence[Utterance]) -> Utterance:
    """Clips of one language as one utterance, with a short silence between them."""
    return Utterance(
        id="+".join(clip.id for clip in clips),
        audio=tuple(clips),
        text=" ".join(clip.text for clip in clips),
        seconds=sum(clip.seconds for clip in clips) + GAP_SECONDS * (len(clips) - 1),
        language=clips[0].language,
        split=clips[0].split,
    )
