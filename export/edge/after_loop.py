"""Speech after a loop (repeated text): one repetition is kept, and the rest of the clip is transcribed as a clip of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .audio.resample import SAMPLE_RATE, Wave
from .transcript import Transcript
from .vad import VoiceActivityDetector, find_speech
from .words import token_times

SHORTEST = SAMPLE_RATE // 2  # samples: fewest to transcribe after a loop, and fewest to skip before them


def rest_after(
    wave: Wave, attention: npt.NDArray[np.float32], detector: VoiceActivityDetector, window: float
) -> Wave | None:
    """The part of a clip after the tokens of a transcript; None if there is no speech in it.

    Args:
        wave: the clip, [samples] at 16 kHz.
        attention: cross-attention before each token and before the end, [tokens + 1, positions].
        detector: the speech detector.
        window: length of the model's input window in seconds.
    """
    end = round(float(token_times(attention, len(wave) / SAMPLE_RATE)[1][-1]) * SAMPLE_RATE)
    rest = wave[max(end, SHORTEST) :]
    return rest if len(rest) >= SHORTEST and find_speech(rest, detector, window) else None


def join_transcripts(said: Transcript, later: Transcript, begin: float) -> Transcript:
    """Two transcripts of one clip as one; the later one starts at `begin` seconds."""
    stages = {name: said.stages_ms.get(name, 0.0) + ms for name, ms in later.stages_ms.items()}
    return replace(
        said,
        text=f"{said.text} {later.text}".strip(),
        tokens=said.tokens + later.tokens,
        stages_ms={**said.stages_ms, **stages},
        finished=later.finished,
        words=said.words + tuple(word.later(begin) for word in later.words),
        logprob=_mean(said, later) if later.text else said.logprob,
    )


def _mean(said: Transcript, later: Transcript) -> float | None:
    """Mean log-probability of both transcripts' tokens, and of the end if the later one is finished: the first ends in a loop."""
    if said.logprob is None or later.logprob is None:
        return said.logprob
    sizes = len(said.tokens), len(later.tokens) + later.finished
    return (said.logprob * sizes[0] + later.logprob * sizes[1]) / sum(sizes)
