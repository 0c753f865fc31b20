"""The quickstart's distillation on this machine's GPU: in fp32, in bf16, and in bf16 with compiled layers, in turns.

    python benchmarks/distill_on_gpu.py --json FILE

Each run is `workbench distill` in a process of its own. The first turn computes the teacher's targets, in each precision, and
compiles; later turns read the targets. The file is written after every run.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from common import arguments, finish, median, timed, workbench

SETTINGS = {"fp32": ["precision=fp32"], "bf16": ["precision=bf16"], "bf16 compiled": ["precision=bf16", "compile=true"]}


def main() -> None:
    """Run every setting in turn."""
    args = arguments(
        __doc__,
        recipe=("quickstart", "what is run"),
        epochs=(5, "of every stage"),
        turns=(2, "of every setting"),
        only=(",".join(SETTINGS), "these settings, joined by commas"),
        keep=("", "a folder for the runs"),
    )
    from workbench.config.recipe import load_recipe
    from workbench.models.resolve import resolve_teacher

    path = Path(args.recipe)
    recipe = load_recipe(path)
    teacher = resolve_teacher(recipe.teacher)  # from the user's cache; the runs have one of their own
    changed = [f"teacher={teacher}", *(f"stages.{name}.epochs={args.epochs}" for name in recipe.stages)]
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.turns):
            for name in args.only.split(","):
                output = Path(args.keep or folder) / f"{name.replace(' ', '-')}-{turn}"
                command = workbench(
                    Path(folder) / "cache", "distill", str(path), f"output={output}", *SETTINGS[name], *changed
                )
                wall = timed(lambda command=command: subprocess.run(command, check=True))
                scores = json.loads((output / "scores.json").read_text())
                found = {key: scores[key] for key in ("validation", "seconds", "steps")}
                heard = scores["corpus"]["seconds"] * args.epochs * len(recipe.stages)
                runs.append(
                    {"setting": name, "turn": turn, "wall": wall, "rate": heard / found["seconds"]["training"], **found}
                )
                print(runs[-1], flush=True)
                finish(args.json, _figures(runs), runs)


def _figures(runs: list[dict[str, Any]]) -> dict[str, float]:
    rates = {name: median(runs, "rate", setting=name) for name in SETTINGS if any(r["setting"] == name for r in runs)}
    figures = {f"audio_seconds_trained_a_second_{name.replace(' ', '_')}": rate for name, rate in rates.items()}
    others = [name for name in rates if name != "fp32" and "fp32" in rates]
    return figures | {f"{name.replace(' ', '_')}_over_fp32": rates[name] / rates["fp32"] for name in others}


if __name__ == "__main__":
    main()
