"""What wrong labels cost each arm of a study, and how well its runs find them: from finished runs, nothing is trained.

The cost is an arm's error rate on the corrupted corpus less its own on the clean one, with a paired bootstrap over clips and seeds. A
finder ranks the training utterances by distrust; of n corrupted labels the share among the first n is precision and recall at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, finish

OPTIONS = {
    "study": ("studies/noisy", "the study, run before"),
    "student": ("four_layers", "its student"),
    "wrong": ("prompts-es-corrupt40", "the corrupted corpus"),
    "right": ("prompts-es", "the clean one"),
}


def main() -> None:
    """Read the runs, print both tables."""
    options = arguments(__doc__, **OPTIONS)
    from workbench.study.label_errors import RANKINGS
    from workbench.study.plan import load_study

    study = load_study(Path(options.study))
    sides = {
        (arm, corpus): {s: r for s in study.seeds if (r := _result(study, options.student, corpus, arm, s))}
        for arm in study.arms
        for corpus in (options.wrong, options.right)
    }
    lost = {}
    for arm in study.arms:
        wrong, right = sides[arm, options.wrong], sides[arm, options.right]
        if seeds := sorted(set(wrong) & set(right)):
            lost[arm] = {**_lost(wrong, right, seeds), "seeds": seeds}
    finders = {
        arm: [_found(study, options.student, options.wrong, arm, seed) for seed in sides[arm, options.wrong]]
        for arm in study.arms
    }
    figures: dict[str, float] = {}
    for arm in sorted(lost, key=lambda arm: lost[arm]["points"]):
        print(f"{arm:14} CER +{lost[arm]['points']:.1f} ({lost[arm]['ci'][0]:+.1f} to {lost[arm]['ci'][1]:+.1f})")
        figures[f"lost_{arm}"] = lost[arm]["points"]
    for arm, runs in finders.items():
        for by in RANKINGS:
            found = [run[by] for run in runs]
            precision, average = (float(np.mean([f[key] for f in found])) for key in ("precision", "average_precision"))
            print(f"{arm:14} {by:14} {100 * precision:5.1f} % of the first n, average precision {average:.3f}")
        figures[f"found_{arm}"] = float(np.mean([run["system"]["precision"] for run in runs]))
    figures["found_teacher_loss"] = float(
        np.mean([r["teacher_loss"]["precision"] for rs in finders.values() for r in rs])
    )
    finish(options.json, figures, [], lost=lost, finders=finders, corpora=[options.wrong, options.right])


def _result(study: Any, student: str, corpus: str, arm: str, seed: int) -> Any:
    from workbench.core.files import read_json
    from workbench.study.plan import Trial
    from workbench.study.runner import result_file

    path = result_file(study, Trial(student, corpus, arm, seed))
    return read_json(path, "a run of the study")[study.split] if path.is_file() else None


def _lost(wrong: dict[int, Any], right: dict[int, Any], seeds: list[int]) -> dict[str, Any]:
    from workbench.evaluation.comparison import PairedHypotheses, difference_over_seeds

    first = wrong[seeds[0]]
    ours, theirs = ([side[s]["hypotheses"] for s in seeds] for side in (wrong, right))
    return difference_over_seeds([PairedHypotheses(first["references"], ours, theirs, first["language"])], "cer")


def _found(study: Any, student: str, corpus: str, arm: str, seed: int) -> dict[str, Any]:
    from workbench.study.label_errors import read_run
    from workbench.study.plan import Trial

    run = read_run(study.output / Trial(student, corpus, arm, seed).name)
    return {"seed": seed, "ranked_by": run.distrust()[1], **(run.found or {})}


if __name__ == "__main__":
    main()
