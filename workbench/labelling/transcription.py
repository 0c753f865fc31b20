"""Transcribe recordings of any length with a checkpoint in torch, as `workbench transcribe` does where no bundle is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from workbench.audio.decode import LONGEST_SECONDS, SAMPLE_RATE, Wave, check_length
from workbench.labelling.segmentation import SpeechSpan, VoiceActivityDetector
from workbench.models import open_family
from workbench.models.resolve import resolve_teacher


class TranscribedSpan(NamedTuple):
    """A stretch of speech and what was said in it."""

    start: float  # seconds
    end: float  # seconds
    text: str
    language: str


class TorchRecognizer:
    """A teacher or student checkpoint that transcribes recordings."""

    def __init__(self, model: str) -> None:
        """Load it, on a GPU where there is one.

        Args:
            model: as for `--teacher`: a name listed by `workbench teachers`, a hub id, or a folder.

        Raises:
            UserError: there is no such model, or it cannot be used.
        """
        self.family = open_family(resolve_teacher(model))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = self.family.load().to(self.device).eval()
        self.detector = VoiceActivityDetector()

    @torch.no_grad()
    def segments(
        self, wave: Wave, longest: float, language: str = "auto", beams: int = 1, name: str = ""
    ) -> Iterator[TranscribedSpan]:
        """Transcribe a recording; nothing is yielded where nobody speaks.

        Args:
            wave: [samples] at 16 kHz; what is longer than 30 s is cut at pauses.
            longest: seconds of the longest stretch.
            language: ISO 639-1 code, or `auto` to detect that of each stretch of speech.
            beams: beams of the search; 1 is greedy.
            name: what to call the recording in an error.

        Raises:
            UserError: the wave is too short, or the model does not support the language.
        """
        spans = self.detector.pieces(wave, longest)
        if len(wave) <= LONGEST_SECONDS * SAMPLE_RATE:
            check_length(wave, name)
            spans = spans and [SpeechSpan(0.0, len(wave) / SAMPLE_RATE)]
        for span in spans:
            piece = wave[round(span.start * SAMPLE_RATE) : round(span.end * SAMPLE_RATE)]
            states = self.family.encode(
                self.model, self.family.features([piece], self.family.input_seconds([piece]), self.device)
            )
            code = self.family.languages(self.model, states)[0][0] if language == "auto" else language
            said = self.family.transcribe(self.model, states, [span.end - span.start], [code], beams)[0]
            yield TranscribedSpan(span.start, span.end, said.text, code)
