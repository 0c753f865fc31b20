"""One spoken utterance and its transcript: the record that every corpus is read into."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from workbench.audio import LONGEST_SECONDS, Wave, check_length, decode

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Utterance:
    """A clip of speech; its audio is decoded only when asked for."""

    id: str  # unique within the corpus
    audio: Path | bytes = field(repr=False)  # a file, or the encoded bytes of a streamed clip
    text: str  # the reference transcript as it stands
    seconds: float
    language: str = "en"  # ISO 639-1
    split: str = "train"

    def wave(self) -> Wave:
        """Decode to a 16 kHz mono wave [samples]; raises UserError for audio that cannot be used."""
        wave = decode(self.audio, self.name, LONGEST_SECONDS)
        check_length(wave, self.name)
        return wave

    @property
    def name(self) -> str:
        """What to call this clip in a message."""
        return str(self.audio) if isinstance(self.audio, Path) else f"clip {self.id!r}"

    def audio_sha256(self) -> str:
        """Hex SHA-256 of the encoded audio, which keys everything computed from it."""
        data = self.audio.read_bytes() if isinstance(self.audio, Path) else self.audio
        return hashlib.sha256(data).hexdigest()
