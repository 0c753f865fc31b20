"""What learning weights by look-ahead, and learning from the student's own words, cost over fixed-weight distillation.

    python benchmarks/weighting_cost.py --json FILE

Epochs of fixed KD and updates of ALM-KD (10 repeats) and AMAL (5) take turns on the same student and clips, of which there are
eight for one of validation, as in the built-in corpora; so do some steps of fixed KD and as many on-policy ones. Published for ALM-KD and AMAL: updates before epochs 10, 20, ..., 190 of 200, which are 19 updates
for 200 epochs of training. Two decoder layers; the encoder frozen and its states cached, which is the cheapest step and so
the worst case; or encoder and decoder both trained.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median as middle
from typing import Any

from common import Worker, arguments, finish, sample, serve, timed, write_manifest

PUBLISHED_SHARE = 19 / 200  # updates an epoch
CASES = {"frozen": ("decoder", "all"), "frozen, narrowed vocabulary": ("decoder", "corpus"), "trained": ("all", "all")}
LOOKING, SAMPLING = ("almkd", "amal"), ("gkd", "speculative")
OVER = {**dict.fromkeys(LOOKING, "epoch"), **dict.fromkeys(SAMPLING, "steps")}  # what of fixed KD each is compared with
EPOCHS_BEFORE = 2  # no published update is of an untrained student, to whom every token is likely
STEPS = 6  # an on-policy step is so slow that an epoch of them would take the afternoon


def main() -> None:
    """Every case in a process of its own."""
    args = arguments(
        __doc__, clips=(160, "clips of the training set"), repeats=(3, "turns"), folder=("", "for workers")
    )
    if args.worker:
        work(args.worker, args.clips, Path(args.folder))
        return
    runs: list[dict[str, Any]] = []
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            worker = Worker(__file__, case, clips=args.clips, folder=folder)
            turns = [system for other in OVER for system in (OVER[other], other)]
            runs += [
                {"case": case, "turn": turn, "system": system, **worker.ask(what=system)}
                for turn in range(args.repeats)
                for system in turns
            ]
            worker.close()
            for system in LOOKING:
                figures[f"overhead_percent {system}, {case}"] = 100 * PUBLISHED_SHARE * ratio(runs, case, system)
                figures[f"update_in_epochs {system}, {case}"] = ratio(runs, case, system)
            for system in SAMPLING:
                figures[f"step_in_steps {system}, {case}"] = ratio(runs, case, system)
    finish(args.json, figures, runs)


def ratio(runs: list[dict[str, Any]], case: str, system: str) -> float:
    """Median time of a system over that of what it is compared with."""
    whole, own = (
        middle(r["seconds"] for r in runs if (r["case"], r["system"]) == (case, name))
        for name in (OVER[system], system)
    )
    return own / whole


def begin(place: Path, clips: int, trainable: str, vocabulary: str, **stage: Any) -> tuple[Any, Any]:
    """The one stage of a run on clips of the built-in corpus, an eighth as many for validation, about to step; and what it trains on."""
    from workbench.config.recipe import parse_recipe
    from workbench.run.checkpoints import TrainingProgress, TrainingState
    from workbench.training.stage import StageTrainer
    from workbench.training.trainer import Trainer

    place.mkdir()
    settings = {
        "trainable": trainable,
        "epochs": 1000,
        "learning_rate": 1e-5,
        "batch_seconds": 28.0,
        "micro_batches": 1,
    }
    recipe = parse_recipe(
        {"output": str(place / "run"), "corpus": str(write_manifest(place, sample(clips), clips // 8)),
         "student": {"decoder_layers": 2, "vocabulary": vocabulary}, "stages": {"stage": {**settings, **stage}}}, "benchmark",
    )  # fmt: skip
    context, datasets, validation = Trainer(recipe).prepare()
    state = TrainingState(TrainingProgress(micro_batches=1))
    loop = StageTrainer(context, datasets, validation, 0, "stage", recipe.stages["stage"], state)
    return loop, next(datasets.epochs("stage", loop.stage, state.progress, state.timers))


def work(case: str, clips: int, folder: Path) -> None:
    """Answers for one case."""
    os.environ.setdefault("WORKBENCH_CACHE", str(folder / "cache"))
    from workbench.config.sections import OnPolicyRecipe
    from workbench.training.teaching.on_policy import OnPolicy
    from workbench.weighting import TeacherStatistics, build_weighting

    place = folder / case.replace(", ", "-").replace(" ", "-")
    loop, dataset = begin(place, clips, *CASES[case], learning_rate=1e-4, on_policy={"fraction": 1.0})
    resident = loop.context.teachers["stage"].resident
    assert resident is not None
    loop.meta_clips = loop.validation.clips("stage", loop.stage.trainable == "decoder")
    fixed = loop.begin(dataset)
    planned = loop.plan(dataset)

    def epoch(method: str | None = None, steps: int | None = None) -> None:
        settings = OnPolicyRecipe(method=method, fraction=1.0) if method else None  # type: ignore[arg-type]
        family = loop.context.family
        loop.forward_backward.on_policy = OnPolicy(settings, family, resident) if settings else None
        for batches in islice(loop.epochs.batches(planned), steps):
            loop.step(batches, fixed, 100_000)
        loop.context.log.flush_pending()

    def update(name: str) -> None:
        weighting = build_weighting({"name": name, "start_epoch": 0, "update_every": 1}, TeacherStatistics((1.0,)))
        loop.begin_epoch(replace(fixed, weighting=weighting), planned, 100_000)

    update("almkd")  # the validation set's encoder states are computed once
    for _ in range(EPOCHS_BEFORE):
        epoch()

    def answer(what: str) -> dict[str, Any]:
        if what in LOOKING:
            return {"seconds": timed(lambda: update(what))}
        if what == "epoch":
            return {"seconds": timed(epoch)}
        return {"seconds": timed(lambda: epoch(what if what in SAMPLING else None, STEPS))}

    serve(answer, {"clips": clips})


if __name__ == "__main__":
    main()
