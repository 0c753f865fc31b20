"""Clips of the corpus for the browser to play: decoded, by their number, never by a path."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

from workbench.audio.decode import write_wav
from workbench.corpus import Utterance

KEPT = 64  # clips in memory; of at most 30 s, so a megabyte each


class CorpusAudio:
    """The clips of a split as WAV files.

    Args:
        clips: in the order of their numbers.
    """

    def __init__(self, clips: Sequence[Utterance]) -> None:
        self.clips = clips
        self.wav = functools.lru_cache(maxsize=KEPT)(self._wav)

    def __len__(self) -> int:
        return len(self.clips)

    def _wav(self, number: int) -> bytes:
        out = io.BytesIO()
        write_wav(out, self.clips[number].wave())
        return out.getvalue()
