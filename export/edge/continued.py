"""What is said after a loop: where the round that is kept ends, the rest of the clip is transcribed as a clip of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .audio import SAMPLE_RATE, Wave
from .speech import pieces_of
from .transcript import Transcript
from .words import spans

if TYPE_CHECKING:
    from .recognizer import Recognizer

SHORTEST = SAMPLE_RATE // 2  # samples of the shortest rest that is tried, and by which it begins later at least


def continued(recognizer: Recognizer, wave: Wave, said: Transcript, beams: int, words: bool) -> Transcript:
    """A transcript that ends in a loop, with what is said after the round of it that is kept.

    That takes attention heads that follow the speech, to tell where the round ends, and the detector, to tell whether anything is said
    after it. Without them the transcript stays as it is.

    Args:
        recognizer: what wrote it.
        wave: the clip, [samples] at 16 kHz.
        said: its transcript.
        beams: as for `Recognizer.transcribe`.
        words: as for `Recognizer.transcribe`.
    """
    if not said.tokens or not recognizer.has_heads or recognizer.detector is None:
        return said
    looked = recognizer.looked(recognizer.states([wave]), recognizer.prompts[said.language], said.tokens, len(wave))
    end = round(float(spans(looked, len(wave) / SAMPLE_RATE)[1][-1]) * SAMPLE_RATE)
    rest = wave[max(end, SHORTEST) :]
    if len(rest) < SHORTEST or not pieces_of(rest, recognizer.detector, recognizer.window):
        return said
    later = recognizer.transcribe(rest, said.language, beams, words)
    stages = {name: said.stages_ms.get(name, 0.0) + ms for name, ms in later.stages_ms.items()}
    begin = (len(wave) - len(rest)) / SAMPLE_RATE
    return replace(
        said,
        text=f"{said.text} {later.text}".strip(),
        tokens=said.tokens + later.tokens,
        stages_ms={**said.stages_ms, **stages},
        finished=later.finished,
        words=said.words + tuple(word.later(begin) for word in later.words),
    )
