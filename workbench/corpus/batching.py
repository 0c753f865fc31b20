"""Steps of clips of similar length, limited by seconds instead of a number of clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.corpus.utterance import Utterance

BUCKET_STEPS = 16  # clips are sorted by length within a shuffled stretch of about this many steps


@dataclass(frozen=True)
class StepPlan:
    """The clips of one optimizer step."""

    number: int  # of the epoch
    clips: tuple[int, ...]  # indices, by rising length
    seconds: float  # of the longest clip

    def micro_batch(self, number: int, count: int) -> tuple[int, ...]:
        """Clips of one of `count` micro-batches; each has short and long ones. May be empty."""
        return self.clips[number::count]


def plan_steps(utterances: Sequence[Utterance], budget: float, margin: float, seed: Sequence[int]) -> list[StepPlan]:
    """One epoch's steps, in a random order that depends on the seed alone.

    A step costs its clips times its longest (plus the margin), because shorter clips are padded; that product stays
    within the budget unless a single clip exceeds it.

    Args:
        utterances: the clips.
        budget: seconds of audio a step, padding included.
        margin: seconds added to each clip.
        seed: any integers, for example (seed, stage, epoch).
    """
    generator = np.random.default_rng(list(seed))
    order = generator.permutation(len(utterances))
    mean = float(np.mean([u.seconds for u in utterances])) + margin
    stretch = max(1, round(BUCKET_STEPS * budget / mean))
    steps: list[list[int]] = []
    for start in range(0, len(order), stretch):
        step: list[int] = []
        for i in sorted(order[start : start + stretch], key=lambda i: (utterances[i].seconds, i)):
            if step and (len(step) + 1) * (utterances[i].seconds + margin) > budget:
                steps.append(step)
                step = []
            step.append(int(i))
        steps.append(step)
    shuffled = [steps[i] for i in generator.permutation(len(steps))]
    return [StepPlan(n, tuple(step), utterances[step[-1]].seconds) for n, step in enumerate(shuffled)]


def padding_share(utterances: Sequence[Utterance], steps: Sequence[StepPlan]) -> float:
    """Share of a plan's seconds that is padding to the longest clip of a step."""
    padded = sum(len(step.clips) * step.seconds for step in steps)
    return 1 - sum(utterances[i].seconds for step in steps for i in step.clips) / padded
