"""How many micro-batches a step is split into, so that it fits in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from workbench.core.errors import UserError
from workbench.core.machine.memory import Peak
from workbench.corpus.batching import StepPlan

log = logging.getLogger("workbench")
MEMORY_SHARE = 0.85  # of the free memory that the worst step may take
MAX_MICRO_BATCHES = 64


def micro_batches_that_fit(
    plan: Sequence[StepPlan],
    margin: float,
    least: int,
    device: torch.device,
    attempt: Callable[[StepPlan, int], Peak | None],
    worst_of: Callable[[Peak | None], tuple[bool, float]],
    stage: str,
) -> int:
    """Try the largest step and return how many micro-batches it needs to fit in memory.

    On a GPU the step itself is tried, and halved until it fits. On a CPU the system would kill a process that takes too much, so a
    quarter is tried and the memory of the whole is estimated from it.

    Args:
        plan: the steps.
        margin: most seconds added to a clip.
        least: fewest micro-batches, one for each process.
        device: the one that trains.
        attempt: runs one micro-batch of a step split into that many, and returns its peak memory.
        worst_of: whether any process failed, and the largest share of the free memory that one took.
        stage: its name.

    Raises:
        UserError: a single clip does not fit.
    """
    worst = max(plan, key=lambda s: (len(s.clips) * (s.seconds + margin), s.number))
    on_gpu = device.type == "cuda"
    count = least if on_gpu else least * min(4, max(1, len(worst.clips) // least))
    while True:
        peak = attempt(worst, count)
        failed, share = worst_of(peak)
        if on_gpu and (failed or share > MEMORY_SHARE):
            if count >= MAX_MICRO_BATCHES * least or len(worst.clips) <= count:
                raise UserError(
                    f"stages.{stage}: one clip of {worst.seconds:.1f} s does not fit in memory; "
                    "set activation_checkpointing: true, precision: bf16, or take a smaller student"
                )
            count *= 2
            continue
        break
    if not on_gpu:
        tried, count = count, least
        while share * tried / count > MEMORY_SHARE and count < tried:
            count *= 2
    used, free = (peak.used / 1e9, peak.free / 1e9) if peak else (0.0, 0.0)
    log.info(
        "stage %s: the worst step, %d clips of %.1f s, in %d micro-batch(es); %.2f GB of %.1f GB free for a %s of it",
        stage, len(worst.clips), worst.seconds, count, used, free, "part" if not on_gpu else "micro-batch",
    )  # fmt: skip
    return count
