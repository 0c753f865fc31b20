"""Transcripts of live speech: blocks of audio go in, partial and final texts come out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .audio.resample import SAMPLE_RATE, AudioError, Wave
from .decoding.drafts import EarlierText
from .decoding.hotwords import Hotwords
from .decoding.language_model import LanguageModel
from .recognizer import Recognizer
from .vad import FRAME, OFF, ON, PAD

EVERY = 0.5  # seconds of speech between partial texts
PAUSE = 0.6  # seconds of silence that end an utterance
BEFORE = 0.3  # seconds kept from before speech is detected


@dataclass(frozen=True)
class PartialTranscript:
    """The transcript of one utterance so far."""

    text: str
    start: float  # seconds since the stream began
    end: float
    final: bool  # False: the text may still change, and the next one replaces it
    looped: bool = False  # whether the decoder repeated itself up to its limit; one repetition is kept


class Stream:
    """Utterances of a live signal, found by the bundle's speech detector.

    A recogniser that is fast enough can transcribe the whole utterance again for each partial text, so nothing has to be stitched. The decoder
    checks the text so far in one pass and writes only what has changed since (decoding/drafts.py).

    Args:
        recognizer: an open bundle.
        language: ISO 639-1 code, or `auto` to detect each utterance's.
        every: seconds of speech between partial texts.
        pause: seconds of silence that end an utterance.
        drafts: False to write every partial text from its beginning. The texts are the same.
        beams: as for `Recognizer.transcribe`. Drafts are for greedy decoding without hotwords.
        hotwords: as for `Recognizer.transcribe`.
        lm: as for `Recognizer.transcribe`.
        min_logprob: as for `Recognizer.transcribe`, of final texts.

    Raises:
        BundleError: the bundle has no speech detector, or does not take an option.
    """

    def __init__(
        self, recognizer: Recognizer, language: str = "en", every: float = EVERY, pause: float = PAUSE, drafts: bool = True,
        beams: int = 1, hotwords: Hotwords | None = None, lm: LanguageModel | None = None, min_logprob: float | None = None,
    ) -> None:  # fmt: skip
        recognizer.check_options(language, beams=beams, lm=lm, min_logprob=min_logprob)
        self.beams, self.hotwords, self.lm, self.min_logprob = beams, hotwords, lm, min_logprob
        self.recognizer, self.language, self.every, self.pause = recognizer, language, every, pause
        self.detector, self.drafts = recognizer.new_detector(), drafts
        self.written: tuple[int, ...] = ()  # tokens of the utterance's last partial text
        self.longest = int((recognizer.window - 1) * SAMPLE_RATE) // FRAME * FRAME
        self.kept = np.zeros(0, np.float32)  # since `begun`
        self.begun = 0  # samples before `kept`
        self.rest = np.zeros(0, np.float32)  # less than a frame
        self.speaking = False
        self.quiet = 0  # samples since speech was last noticed
        self.shown = 0  # samples of `kept` at the last partial text

    def feed(self, block: Wave) -> Iterator[PartialTranscript]:
        """Take the next samples, [samples] at 16 kHz, of any number; yields what is new, often nothing."""
        if block.ndim != 1 or not np.isfinite(block).all():
            raise AudioError(f"the block has shape {block.shape}; expected finite [samples]")
        waiting = np.concatenate([self.rest, block.astype(np.float32)])
        whole = len(waiting) // FRAME * FRAME
        self.rest = waiting[whole:]
        for frame, likely in zip(waiting[:whole].reshape(-1, FRAME), self.detector(waiting[:whole]), strict=True):
            yield from self._frame(frame, float(likely))

    def finish(self) -> Iterator[PartialTranscript]:
        """End the signal; yields the last utterance, if one is open."""
        self.kept = np.concatenate([self.kept, self.rest])
        self.rest = self.rest[:0]
        if self.speaking:
            yield self._partial(True)

    def _frame(self, frame: Wave, likely: float) -> Iterator[PartialTranscript]:
        self.kept = np.concatenate([self.kept, frame])
        if not self.speaking:
            if likely < ON:
                self._drop(len(self.kept) - int(BEFORE * SAMPLE_RATE))
                return
            self.speaking, self.quiet, self.shown = True, 0, 0
        self.quiet = self.quiet + FRAME if likely < OFF else 0
        if self.quiet >= self.pause * SAMPLE_RATE or len(self.kept) >= self.longest:
            yield self._partial(True)
            self.speaking = False
            self._drop(len(self.kept) - int(BEFORE * SAMPLE_RATE) if self.quiet else len(self.kept))
        elif len(self.kept) - self.shown >= self.every * SAMPLE_RATE and not self.quiet:
            self.shown = len(self.kept)
            yield self._partial(False)

    def _partial(self, final: bool) -> PartialTranscript:
        said = self.kept[: len(self.kept) - max(0, self.quiet - int(PAD * SAMPLE_RATE))]
        draft = EarlierText(self.written) if self.drafts and self.written else None
        # the stream's detector has found speech in it
        found = self.recognizer.transcribe(
            said, self.language, self.beams, vad=False, hotwords=self.hotwords, lm=self.lm, draft=draft, min_logprob=self.min_logprob if final else None,
        )  # fmt: skip
        self.written = () if final else found.tokens
        start = self.begun / SAMPLE_RATE
        return PartialTranscript(found.text, start, start + len(said) / SAMPLE_RATE, final, found.looped)

    def _drop(self, samples: int) -> None:
        if samples > 0:
            self.kept, self.begun = self.kept[samples:], self.begun + samples
