"""New utterances from existing ones: other speeds, and short clips joined. The teacher labels them like any other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from workbench.audio.decode import LONGEST_SECONDS, SHORTEST_SECONDS
from workbench.corpus.utterance import GAP_SECONDS, Utterance, join_clips


def speed_perturbed(utterances: Sequence[Utterance], speeds: Sequence[float]) -> list[Utterance]:
    """Each utterance again at each speed (Ko et al. 2015, "Audio augmentation for speech recognition").

    A clip that would leave Whisper's window or become too short to hold a word is left out.
    """
    out = []
    for speed in speeds:
        for utterance in utterances:
            seconds = utterance.seconds / speed
            if SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
                out.append(replace(utterance, id=f"{utterance.id}@{speed:g}", seconds=seconds, speed=speed))
    return out


def concatenated(utterances: Sequence[Utterance], longest: float, seed: int) -> list[Utterance]:
    """The utterances in a random order, joined to clips of up to `longest` seconds, those of a language together.

    The order depends on the seed alone, so that the teacher's targets of the joined clips are made once.
    """
    order = np.random.default_rng([seed, len(utterances)]).permutation(len(utterances))
    out: list[Utterance] = []
    for language in sorted({u.language for u in utterances}):
        clips = [utterances[i] for i in order if utterances[i].language == language]
        out += [join_clips(group) for group in neighbours(clips, longest) if len(group) > 1]
    return out


def neighbours(utterances: Iterable[Utterance], longest: float) -> Iterator[list[Utterance]]:
    """The utterances in order, in groups that last at most `longest` seconds once they are joined."""
    group: list[Utterance] = []
    seconds = 0.0
    for utterance in utterances:
        if group and seconds + GAP_SECONDS + utterance.seconds > longest:
            yield group
            group, seconds = [], 0.0
        seconds += utterance.seconds + (GAP_SECONDS if group else 0.0)
        group.append(utterance)
    if group:
        yield group
