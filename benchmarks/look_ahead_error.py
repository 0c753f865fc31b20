"""What it costs a look-ahead's gradients that tokens which the step does not move go together, and what it saves.

    python benchmarks/look_ahead_error.py --json FILE

On micro-batches of a student of two decoder layers after some steps of fixed KD: the gradients of all weights over the
whole vocabulary and over what `meta_gradients.restrict_to_moved_tokens` leaves of it, in turns.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import arguments, finish, timed
from weighting_cost import begin

STEPS, BATCHES, TIMES = (0, 50, 150, 300), 3, 5


def main() -> None:
    """With a narrowed vocabulary and the whole one."""
    args = arguments(__doc__, clips=(160, "clips of the training set"))
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("WORKBENCH_CACHE", str(Path(folder) / "cache"))
        for vocabulary in ("corpus", "all"):
            runs += work(Path(folder) / vocabulary, args.clips, vocabulary)
    figures = {}
    for vocabulary, name in (("corpus", "narrowed"), ("all", "whole")):
        for steps in STEPS:
            own = [r for r in runs if (r["vocabulary"], r["steps"]) == (vocabulary, steps)]
            figures[f"kept_percent {name}, {steps} steps"] = sum(r["kept_percent"] for r in own) / len(own)
            figures[f"repeat_ratio {name}, {steps} steps"] = sum(r["whole_ms"] for r in own) / sum(
                r["kept_ms"] for r in own
            )
        figures[f"largest_error {name}"] = max(r["error"] for r in runs if r["vocabulary"] == vocabulary)
    finish(args.json, figures, runs)


def work(place: Path, clips: int, vocabulary: str) -> list[dict[str, Any]]:
    """Steps of fixed KD with looks ahead between them."""
    loop, dataset = begin(place, clips, "decoder", vocabulary, learning_rate=1e-4)
    objective = loop.begin(dataset)
    planned = loop.plan(dataset)
    found = []
    for steps in range(STEPS[-1] + 1):
        if steps in STEPS:
            found += [{"vocabulary": vocabulary, "steps": steps, **row} for row in compare(loop, objective, planned)]
            batches = loop.epochs.batches(planned)
        if (batch := next(batches, None)) is None:
            batches = loop.epochs.batches(planned)
            batch = next(batches)
        loop.step(batch, objective, STEPS[-1])
    return found


def compare(loop: Any, objective: Any, planned: Any) -> list[dict[str, Any]]:
    """Both gradients of some micro-batches."""
    from workbench.training.step.losses import StageProgress
    from workbench.training.step.meta_batches import StudentMetaBatches

    few = replace(planned, steps=planned.steps[:BATCHES])
    batches = (batch for step in loop.epochs.batches(few) for batch in step)
    at = StageProgress(0.5, 0, 1)
    model, family, audio = loop.context.model, loop.context.family, loop.forward_backward.audio
    meta_batches = StudentMetaBatches(model, family, batches, audio, loop.clips, objective, at, 1e-4, dict)
    return [both(batch, outer) for batch, outer in meta_batches.pairs(False)]


def both(batch: Any, outer: Any) -> dict[str, Any]:
    """Difference and median times of the two, in turns."""
    from workbench.weighting.meta_gradients import outer_gradients, restrict_to_moved_tokens

    weights = torch.full((2, len(batch.ids)), 0.5)
    fewer = restrict_to_moved_tokens(batch, outer)
    whole = outer_gradients(batch, outer, weights, 0.1)
    error = (outer_gradients(*fewer, weights, 0.1) - whole).norm() / whole.norm()
    work = {
        "prepare_ms": lambda: restrict_to_moved_tokens(batch, outer),
        "whole_ms": lambda: outer_gradients(batch, outer, weights, 0.1),
        "kept_ms": lambda: outer_gradients(*fewer, weights, 0.1),
    }
    times = [{name: 1000 * timed(call) for name, call in work.items()} for _ in range(TIMES)]
    return {
        "labels": batch.residuals.shape[1],
        "vocabulary_size": batch.residuals.shape[2],
        "kept_percent": 100 * (fewer[0].residuals.shape[2] - 1) / batch.residuals.shape[2],
        "error": float(error),
        **{name: sorted(turn[name] for turn in times)[TIMES // 2] for name in work},
    }


if __name__ == "__main__":
    main()
