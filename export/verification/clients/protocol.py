"""The interface between verification and the runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypedDict

from export.bundle.manifest import CHECKPOINT_FILES
from workbench.audio.decode import Wave

# Graphs and files that Hugging Face's runtimes read from a bundle.
HUGGING_FACE = ("encoder", "decoder"), CHECKPOINT_FILES


@dataclass(frozen=True)
class Transcription:
    """A runtime's transcript of one clip."""

    text: str
    tokens: tuple[int, ...] | None  # without prompt and end; None if the runtime does not return them


class ClipFile(TypedDict):
    """A clip to transcribe."""

    wav: str  # path
    language: str


class Job(TypedDict):
    """Input of a client's process."""

    bundle: str  # path
    precision: str
    threads: int | None
    clips: list[ClipFile]


class Transcribed(TypedDict):
    """A Transcription, from JSON."""

    text: str
    tokens: list[int] | None


class Outcome(TypedDict):
    """Output of a client's process."""

    version: str  # of the runtime
    clips: list[Transcribed]


class Client(Protocol):
    """A bundle opened in some runtime."""

    version: str

    def transcribe(self, wave: Wave, language: str) -> Transcription:
        """Transcribe one utterance, [samples] at 16 kHz."""
        ...
