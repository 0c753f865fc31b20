"""Learning curves of the run that a bundle's student comes from, for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from export.measurement.content import Curves, Loss
from workbench.core.errors import UserError
from workbench.core.files import json_lines

POINTS = 300  # per curve in the report; longer ones are averaged down


class _Step(TypedDict, total=False):
    """A line of metrics.jsonl: of a step's losses, or of a validation."""

    step: int
    stage: str
    loss: float
    task: float
    distillation: float
    matching: float
    validation_wer: float
    validation_cer: float


def curves_of_run(folder: Path) -> Curves | None:
    """Loss and validation curves of a run's folder, or None if it holds no training.

    Returns:
        `steps` (the last step of each point), `stage` (of each point), each loss by name, averaged over the point's steps, and
        `validation`: step, WER and CER in percent of each validation.

    Raises:
        UserError: the run's log is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return None
    try:
        return _curves([json.loads(line) for line in json_lines(path)])
    except (ValueError, KeyError, TypeError) as error:  # not JSON, not UTF-8, or without a field
        raise UserError(f"{path}: not the log of a run ({' '.join(str(error).split())})") from None


def _curves(rows: list[_Step]) -> Curves | None:
    trained = [row for row in rows if "loss" in row]
    if not trained:
        return None
    # no point spans two stages
    stages = list(dict.fromkeys(row["stage"] for row in trained))
    groups: list[list[_Step]] = []
    for stage in stages:
        own = [row for row in trained if row["stage"] == stage]
        size = max(1, -(-len(trained) // POINTS))
        groups += [own[i : i + size] for i in range(0, len(own), size)]

    def averaged(name: Loss) -> list[float]:
        # an on-policy step has no task loss; it must not be averaged in as 0
        known = [[row[name] for row in group if name in row] for group in groups]
        return [float(f"{sum(values) / max(len(values), 1):.6g}") for values in known]

    return {
        "steps": [group[-1]["step"] for group in groups],
        "stage": [group[0]["stage"] for group in groups],
        "loss": averaged("loss"),
        "task": averaged("task"),
        "distillation": averaged("distillation"),
        "matching": averaged("matching"),
        "validation": [
            {"step": row["step"], "wer": row["validation_wer"], "cer": row["validation_cer"]}
            for row in rows
            if "validation_wer" in row
        ],
    }
