"""Audio trained a second: this engine against the field's reference recipe, same teacher, student, data, optimizer, batch.

    python benchmarks/distill_throughput.py --json FILE

For each of two cases, the encoder trained and the encoder frozen, both systems run in processes of their own and take
turns: some steps of the reference, with its habits taken away one by one, then an epoch of ours. Ten epochs are reckoned
from the medians, with our teacher's pass and the frozen encoder's counted in.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Worker, arguments, finish, median, sample, serve, timed, write_manifest

BATCH_CLIPS = 8
LADDER = [
    ("reference", {}),
    ("labels as long as the batch's", {"short_labels": True}),
    ("logits where there are labels", {"short_labels": True, "gather": True}),
    ("teacher's targets from disk", {"short_labels": True, "gather": True, "cached_teacher": True}),
    ("audio at its own length", {"short_labels": True, "gather": True, "cached_teacher": True, "true_length": True}),
]


def main() -> None:
    """Drive the workers in turn."""
    args = arguments(
        __doc__, clips=(96, "clips of the corpus"), repeats=(3, "turns of each system"), folder=("", "cache")
    )
    if args.worker:
        system, case = args.worker.split(":")
        return (ours if system == "ours" else reference)(case == "frozen", args.clips, Path(args.folder))
    runs: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    memory = []
    with tempfile.TemporaryDirectory() as folder:
        for case in ("trained", "frozen"):
            options = {"clips": args.clips, "folder": folder}
            mine = Worker(__file__, f"ours:{case}", **options)
            other = Worker(__file__, f"reference:{case}", **options)
            peak_matmul = []
            other.ask(tricks={}, steps=1)  # warm-up, not counted; ours has had its own
            memory.append(mine.ask(what="memory")["peak"] / other.ask(what="memory")["peak"])
            for turn in range(args.repeats):
                for name, tricks in LADDER:
                    # the reference's steps are minutes long: one a turn; the cheaper rungs get more
                    found = other.ask(tricks=tricks, steps=4 if tricks.get("true_length") else 1)
                    runs.append({"case": case, "system": name, "turn": turn, **found})
                    print(runs[-1], flush=True)
                runs.append({"case": case, "system": "this engine", "turn": turn, **mine.ask(what="epoch")})
                print(runs[-1], flush=True)
                peak_matmul.append(mine.ask(what="matmul")["flops"])
            runs.append({"case": case, "system": "this engine", "setup": mine.ready, "matmul_flops": peak_matmul})
            profile = mine.ask(what="profile")
            runs.append({"case": case, "system": "this engine", "profile": profile})
            rate = {name: median([r for r in runs if "rate" in r], "rate", case=case, system=name)
                    for name in [*(n for n, _ in LADDER), "this engine"]}  # fmt: skip
            figures |= _figures(case, rate, mine.ready, max(peak_matmul), profile["flops"], runs)
            print(f"{case}: peak memory, ours over the reference's: {memory[-1]:.3f}")
            for (name, value), below in zip(rate.items(), [next(iter(rate.values())), *rate.values()], strict=False):
                print(f"{case}: {name:32} {value:8.2f} audio s/s, {value / below:6.2f} times the rung before")
            mine.close()
            other.close()
    figures["memory_ratio"] = max(memory)
    finish(args.json, figures, [*runs, {"memory_ratios": dict(zip(("trained", "frozen"), memory, strict=True))}])
    return None


def _figures(
    case: str, rate: dict[str, float], setup: dict[str, Any], matmul: float, flops: float, runs: list[dict[str, Any]]
) -> dict[str, float]:
    audio = setup["audio"]
    mine, reference = audio / rate["this engine"], audio / rate["reference"]  # seconds an epoch
    once = setup["teacher_pass"] + setup["encoder_pass"]
    name = f"encoder_{case}"
    seconds = median([r for r in runs if "rate" in r], "seconds", case=case, system="this engine")
    share = flops / seconds / matmul
    return {
        f"speedup_{name}": rate["this engine"] / rate["reference"],
        f"speedup_{case}_ten_epochs": 10 * reference / (10 * mine + once),
        ("flops_share" if case == "trained" else "flops_share_frozen"): share,
    }


def reference(frozen: bool, clips: int, folder: Path) -> None:
    """The reference recipe, told which of its habits to leave out."""
    os.environ["WORKBENCH_CACHE"] = str(folder)
    import numpy as np
    import torch
    from reference_recipe import Reference, Tricks

    from workbench.cache.teacher_targets import TargetCache
    from workbench.config.sections import StudentRecipe
    from workbench.core.machine.memory import peak_resident_bytes
    from workbench.models import open_family
    from workbench.models.resolve import resolve_teacher
    from workbench.models.whisper.students import build_student

    torch.manual_seed(1)
    family = open_family(resolve_teacher("whisper-base"))
    teacher = family.load()
    utterances = sample(clips)
    settings = _settings()
    cache = TargetCache(settings)
    system = Reference(
        family, teacher, build_student(teacher, StudentRecipe(decoder_layers=2)), frozen, utterances,
        lambda i: cache.read(settings.key(utterances[i]), states=False),
    )  # fmt: skip
    mean = sum(u.seconds for u in utterances) / len(utterances)
    draw = np.random.default_rng(2)

    def answer(tricks: dict[str, bool] | None = None, steps: int = 1, what: str = "") -> dict[str, Any]:
        if what == "memory":
            return {"peak": peak_resident_bytes()}
        seconds = []
        for _ in range(steps):
            chosen = draw.permutation(len(utterances))[:BATCH_CLIPS].tolist()
            seconds.append(timed(lambda chosen=chosen: system.step(chosen, Tricks(**(tricks or {})))))
        # a step of so many mean clips: what it costs hardly depends on which
        return {"step_seconds": seconds, "rate": BATCH_CLIPS * mean / float(np.median(seconds))}

    serve(answer, {"audio": mean * len(utterances)})


def _settings() -> Any:
    from workbench.cache.teacher_targets import TargetSettings
    from workbench.models.resolve import fingerprint, resolve_teacher

    return TargetSettings(fingerprint(resolve_teacher("whisper-base")), 32, 2.0, 0.2, states=False)


def ours(frozen: bool, clips: int, folder: Path) -> None:
    """This engine, through its own recipe and loop."""
    os.environ["WORKBENCH_CACHE"] = str(folder)
    import torch

    from workbench.config.recipe import parse_recipe
    from workbench.core.machine.memory import peak_resident_bytes
    from workbench.run.checkpoints import TrainingProgress, TrainingState
    from workbench.training.stage import StageTrainer
    from workbench.training.trainer import Trainer

    work = folder / ("frozen" if frozen else "trained")
    work.mkdir()
    utterances = sample(clips)
    # as many seconds a step as make eight clips of it on average
    budget = _budget_of(utterances)
    stage = {"trainable": "decoder" if frozen else "all", "epochs": 1000, "learning_rate": 1e-5, "batch_seconds": budget,
             "micro_batches": 1, "weighting": {"name": "fixed", "task": 0.8, "distillation": 1.0}}  # fmt: skip
    recipe = parse_recipe(
        {"output": str(work / "run"), "teacher": "whisper-base", "corpus": str(write_manifest(work, utterances)),
         "student": {"decoder_layers": 2}, "targets": {"top_k": 32, "temperature": 2.0, "allow_large_tail": True}, "stages": {"stage": stage}},
        "benchmark",
    )  # fmt: skip
    trainer = Trainer(recipe)
    passed: dict[str, float] = {}
    # each case measures a teacher's pass of its own; the first one's targets also serve the reference
    first = not trainer.teachers.settings(0).folder().exists()
    targets = None if first else work / "targets"
    passed["teacher_pass"] = timed(lambda: trainer.teachers.labelled(trainer.train_set, targets, "teacher's targets"))
    context, datasets, validation = trainer.prepare(targets)
    state = TrainingState(TrainingProgress(micro_batches=1))
    settings = recipe.stages["stage"]
    loop = StageTrainer(context, datasets, validation, 0, "stage", settings, state)
    started = time.perf_counter()
    dataset = next(datasets.epochs("stage", settings, state.progress, state.timers))
    passed["encoder_pass"] = time.perf_counter() - started
    objective = loop.begin(dataset)
    audio = sum(u.seconds for u in trainer.train_set)

    def epoch() -> int:
        planned = loop.plan(dataset)
        for batches in loop.epochs.batches(planned):
            loop.step(batches, objective, 100_000)
        state.progress.epoch += 1
        context.log.flush_pending()
        return len(planned.steps)

    def answer(what: str) -> dict[str, Any]:
        if what == "memory":
            return {"peak": peak_resident_bytes()}
        if what == "matmul":
            a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
            return {"flops": 2 * 2048**3 / min(timed(lambda: a @ b) for _ in range(8))}
        if what == "profile":
            return _profile(epoch)
        seconds = timed(epoch)
        return {"seconds": seconds, "rate": audio / seconds}

    steps = epoch()  # warm-up
    serve(answer, {**passed, "audio": audio, "steps": steps, "clips_a_step": len(trainer.train_set) / steps})


def _budget_of(utterances: list[Any]) -> float:
    from workbench.corpus.batching import plan_steps

    low, high = 4.0, 200.0
    for _ in range(20):
        middle = (low + high) / 2
        mean = len(utterances) / len(plan_steps(utterances, middle, 0.2, (1, 0, 0)))
        low, high = (middle, high) if mean < BATCH_CLIPS else (low, middle)
    return high


def _profile(epoch: Any) -> dict[str, Any]:
    """Operations of an epoch, and where its time goes."""
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        epoch()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        epoch()
    groups = {
        "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
        "attention": ("aten::_scaled_dot_product",),
        "convolutions": ("aten::convolution", "aten::mkldnn_convolution"),
        "optimizer and clipping": ("aten::_fused_adamw", "aten::linalg_vector_norm", "aten::_foreach"),
        "softmax over the vocabulary": ("aten::exp", "aten::amax", "aten::sub", "aten::logsumexp", "TokenLosses"),
        "preparing batches": ("enumerate(DataLoader)",),
    }
    totals: dict[str, float] = {}
    for event in recorded.key_averages():
        group = next((g for g, names in groups.items() if event.key.startswith(names)), "everything else")
        totals[group] = totals.get(group, 0.0) + event.self_cpu_time_total
    whole = sum(totals.values())
    shares = {g: round(t / whole, 4) for g, t in sorted(totals.items(), key=lambda item: -item[1])}
    return {"flops": counter.get_total_flops(), "time_shares": shares}


if __name__ == "__main__":
    main()
