"""Voice activity detection: Silero's detector and silero-vad's rules for cutting, with numpy and onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from .audio.resample import SAMPLE_RATE, Wave
from .bundle.manifest import BundleError
from .decoding.sessions import as_bundle_errors, open_session, session_options

FRAME = 512  # samples per probability: 32 ms
CONTEXT = 64  # samples before a frame that the detector sees, too
BLOCK = 512  # frames a call
ON, OFF = 0.5, 0.35  # probability at which speech begins, and below which it may end
SPOKEN = 0.35  # probability of a single frame at which a clip counts as speech
LEVEL = 0.5  # of full scale, to which a clip is scaled by its loudest thousandth of samples
AROUND = 0.3  # seconds of silence added before and after a clip
PAUSE = 0.1  # seconds below OFF that end a stretch
SHORTEST = 0.25  # seconds of the shortest stretch
BREATH = 0.098  # seconds of the shortest pause at which a stretch that is too long is cut
PAD = 0.1  # seconds kept before and after speech
LONGEST_PAUSE = 1.0  # longest pause in seconds between stretches that are joined


@dataclass(frozen=True)
class SpeechSpan:
    """A stretch of a recording, in samples."""

    start: int
    end: int


class VoiceActivityDetector:
    """Probability of speech, frame by frame; it keeps its state, so that a stream may come in blocks."""

    def __init__(self, path: Path) -> None:
        self.session = open_session(path, session_options(1), ["CPUExecutionProvider"])
        self.forget()

    def forget(self) -> None:
        """Reset the state for another recording."""
        self.state = [np.zeros((1, 1, 128), np.float32)] * 2
        self.before = np.zeros(CONTEXT, np.float32)

    def __call__(self, wave: Wave) -> npt.NDArray[np.float32]:
        """Probabilities of the frames of a wave, the last one filled up with silence. [samples] -> [frames]"""
        frames = np.pad(wave, (0, -len(wave) % FRAME)).astype(np.float32, copy=False).reshape(-1, FRAME)
        found = [np.zeros(0, np.float32)]
        for i in range(0, len(frames), BLOCK):
            block = frames[i : i + BLOCK]
            contexts = np.concatenate([self.before[None], block[:-1, -CONTEXT:]])
            self.before = block[-1, -CONTEXT:]
            given = {"input": np.concatenate([contexts, block], 1), "h": self.state[0], "c": self.state[1]}
            with as_bundle_errors("the bundle's speech detector does not run"):
                out = self.session.run(["speech_probs", "hn", "cn"], given)
                likely, *self.state = cast("list[npt.NDArray[np.float32]]", out)
            if likely.size != len(block):
                raise BundleError(f"the bundle's speech detector gives {likely.size} values for {len(block)} frames")
            found.append(likely.reshape(-1))
        return np.concatenate(found)


def anybody_speaks(wave: Wave, detector: VoiceActivityDetector) -> bool:
    """Whether there is speech anywhere in a clip, [samples] at 16 kHz.

    It is more lenient than cutting a recording, so that no word is lost: the clip is scaled to one level and padded with silence, and a
    single frame above SPOKEN is enough (docs/decisions/0020-detector.md).
    """
    return speech_probability(wave, detector) >= SPOKEN


def speech_probability(wave: Wave, detector: VoiceActivityDetector) -> float:
    """The detector's highest probability on a clip, scaled to one level and padded with silence."""
    loud = max(1, len(wave) // 1000)  # a thousandth of the samples, so that one click does not decide
    level = float(np.partition(np.abs(wave), -loud)[-loud])
    if level == 0:
        return 0.0
    detector.forget()
    levelled = np.clip(wave * np.float32(LEVEL / level), -1, 1)
    return float(detector(np.pad(levelled, round(AROUND * SAMPLE_RATE))).max())


def find_speech(wave: Wave, detector: VoiceActivityDetector, longest: float) -> list[SpeechSpan]:
    """Stretches of speech of at most `longest` seconds, neighbours joined where they fit.

    Longer speech is cut at its longest pause. wave: [samples] at 16 kHz.
    """
    detector.forget()
    return join_spans(pad_spans(speech_spans(detector(wave), len(wave), longest), len(wave)), longest)


def speech_spans(likely: Sequence[float] | npt.NDArray[np.float32], samples: int, longest: float) -> list[SpeechSpan]:
    """Stretches of speech by the detector's probabilities [frames], still without padding.

    A stretch begins at ON and ends where it has been below OFF for PAUSE seconds. One that gets longer than `longest` is cut at its longest
    pause so far, or right there if it has none.
    """
    most = (longest - 2 * PAD) * SAMPLE_RATE - FRAME - 2 * PAD * SAMPLE_RATE
    out: list[SpeechSpan] = []
    start: int | None = None
    quiet: int | None = None  # since when it has been below OFF
    pauses: list[SpeechSpan] = []
    for at, p in zip(range(0, len(likely) * FRAME, FRAME), likely, strict=True):
        if p >= ON:
            if quiet is not None and at - quiet > BREATH * SAMPLE_RATE:
                pauses.append(SpeechSpan(quiet, at))
            quiet = None
            if start is None:
                start = at
                continue
        if start is None:
            continue
        if at - start > most:
            if pauses:
                pause = max(pauses, key=lambda one: one.end - one.start)
                out.append(SpeechSpan(start, pause.start))
                start, quiet, pauses = pause.end, None, []
            else:
                out.append(SpeechSpan(start, at))
                start = quiet = None
                continue
        if p < OFF:
            quiet = at if quiet is None else quiet
            if at - quiet >= PAUSE * SAMPLE_RATE:
                if quiet - start > SHORTEST * SAMPLE_RATE:
                    out.append(SpeechSpan(start, quiet))
                start, quiet, pauses = None, None, []
    if start is not None and samples - start > SHORTEST * SAMPLE_RATE:
        out.append(SpeechSpan(start, samples))
    return out


def pad_spans(found: Sequence[SpeechSpan], samples: int) -> list[SpeechSpan]:
    """Each stretch with PAD seconds more on both sides; neighbours closer than that share the gap."""
    pad = int(PAD * SAMPLE_RATE)
    gaps = [b.start - a.end for a, b in pairwise(found)]
    inside = [gap // 2 if gap < 2 * pad else pad for gap in gaps]
    before, after = [pad, *inside], [*inside, pad]
    return [
        SpeechSpan(max(0, p.start - b), min(samples, p.end + a)) for p, b, a in zip(found, before, after, strict=False)
    ]


def join_spans(pieces: Sequence[SpeechSpan], longest: float) -> list[SpeechSpan]:
    """Neighbours as one where the pause between them is short and the whole lasts at most `longest` seconds."""
    out: list[SpeechSpan] = []
    for piece in pieces:
        last = out[-1] if out else None
        near = last is not None and piece.start - last.end <= LONGEST_PAUSE * SAMPLE_RATE
        if last and near and piece.end - last.start <= longest * SAMPLE_RATE:
            out[-1] = SpeechSpan(last.start, piece.end)
        else:
            out.append(piece)
    return [p for p in out if p.end - p.start >= SAMPLE_RATE // 10]
