"""What learning weights by look-ahead costs over fixed-weight distillation, at the published update interval.

    python benchmarks/look_ahead.py --json FILE

Epochs of fixed KD and updates of ALM-KD (10 repeats) and AMAL (5) take turns on the same student and clips. Published:
updates before epochs 10, 20, ..., 190 of 200, which are 19 updates for 200 epochs of training. Two students of two decoder
layers: the encoder frozen and its states cached, which is the cheapest step and so the worst case; and encoder and decoder
both trained.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median as middle
from typing import Any

from common import Worker, arguments, finish, sample, serve, timed, write_manifest

PUBLISHED_SHARE = 19 / 200  # updates an epoch
CASES = {"frozen": ("decoder", "all"), "frozen, narrowed vocabulary": ("decoder", "corpus"), "trained": ("all", "all")}


def main() -> None:
    """Every case in a process of its own."""
    args = arguments(__doc__, clips=(48, "clips of the training set"), repeats=(3, "turns"), folder=("", "for workers"))
    if args.worker:
        work(args.worker, args.clips, Path(args.folder))
        return
    runs: list[dict[str, Any]] = []
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            worker = Worker(__file__, case, clips=args.clips, folder=folder)
            runs += [
                {"case": case, "turn": turn, "system": system, **worker.ask(what=system)}
                for turn in range(args.repeats)
                for system in ("epoch", "almkd", "epoch", "amal")
            ]
            worker.close()
            epoch = middle(r["seconds"] for r in runs if (r["case"], r["system"]) == (case, "epoch"))
            for system in ("almkd", "amal"):
                look = middle(r["seconds"] for r in runs if (r["case"], r["system"]) == (case, system))
                figures[f"overhead_percent {system}, {case}"] = 100 * PUBLISHED_SHARE * look / epoch
                figures[f"update_in_epochs {system}, {case}"] = look / epoch
    finish(args.json, figures, runs)


def work(case: str, clips: int, folder: Path) -> None:
    """Answers for one case."""
    os.environ.setdefault("WORKBENCH_CACHE", str(folder / "cache"))
    from workbench.checkpoints import Position
    from workbench.recipe import parse_recipe
    from workbench.stage import StageLoop
    from workbench.train import Distillation
    from workbench.weighting import TeacherStatistics, build_weighting

    trainable, vocabulary = CASES[case]
    place = folder / case.replace(", ", "-").replace(" ", "-")
    place.mkdir()
    stage = {"trainable": trainable, "epochs": 1000, "learning_rate": 1e-5, "batch_seconds": 28.0, "micro_batches": 1}
    recipe = parse_recipe(
        {"output": str(place / "run"), "corpus": str(write_manifest(place, sample(clips), 40)),
         "student": {"decoder_layers": 2, "vocabulary": vocabulary}, "stages": {"stage": stage}}, "benchmark",
    )  # fmt: skip
    run = Distillation(recipe)
    run.whole = run.teachers.labelled(run.train_set, None, "teacher's targets")
    run.teachers.dismiss()
    if vocabulary == "corpus":
        run._narrow()
    position = Position(parts=1)
    loop = StageLoop(run, 0, "stage", recipe.stages["stage"], position)
    window = next(run.windows("stage", recipe.stages["stage"], position))
    fixed = loop._begin(window)
    plan, of, parts = loop._plan(window)

    def epoch() -> None:
        for batches in loop._steps(window, plan, parts, of):
            loop._step(batches, fixed, 100_000)
        run.log.settle()

    def update(name: str) -> None:
        from dataclasses import replace

        weighting = build_weighting({"name": name, "first": 0, "every": 1}, TeacherStatistics((1.0,)))
        loop._begin_round(replace(fixed, weighting=weighting), window, plan, parts, of, 100_000)

    update("almkd")  # the validation set's encoder states are computed once
    epoch()

    def answer(what: str) -> dict[str, Any]:
        started = time.perf_counter()
        seconds = timed(epoch if what == "epoch" else lambda: update(what))
        return {"seconds": seconds, "at": started}

    serve(answer, {"clips": clips})


if __name__ == "__main__":
    main()
