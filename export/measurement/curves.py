"""Learning curves of the run that a bundle's student comes from, for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from export.measurement.content import Curves, Loss
from workbench.core.files import json_lines

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

POINTS = 300  # per curve in the report; longer ones are averaged down
LOSSES: tuple[Loss, ...] = ("loss", "task", "distillation", "matching")


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


def read_curves(bundle: Path) -> Curves | None:
    """Loss and validation curves of the run folder that holds a bundle, or None if it holds no run.

    Returns:
        `steps` (the last step of each point), `stage` (of each point), each loss by name, averaged over the point's steps, and
        `validation`: step, WER and CER in percent of each validation.
    """
    path = bundle.resolve().parent / "metrics.jsonl"
    if not path.is_file():
        return None
    rows: list[_Step] = [json.loads(line) for line in json_lines(path)]
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


def figures(training: Mapping[str, Curves]) -> list[Figure]:
    """One plot per run: losses on a logarithmic axis, validation WER on a second one."""
    import plotly.graph_objects as go

    out = []
    for name, curves in training.items():
        figure = go.Figure(
            layout={
                "title": f"Training of {name} ({', '.join(dict.fromkeys(curves['stage']))})",
                "xaxis_title": "optimizer steps",
                "yaxis": {"title": "loss", "type": "log"},
                "yaxis2": {"title": "validation WER, %", "overlaying": "y", "side": "right", "rangemode": "tozero"},
            }
        )
        for loss in LOSSES:
            # a loss that a stage lacks is stored as 0, which a logarithmic axis cannot show
            values = [value or None for value in curves[loss]]
            if any(values):
                figure.add_scatter(x=curves["steps"], y=values, name=loss, mode="lines")
        figure.add_scatter(
            x=[v["step"] for v in curves["validation"]],
            y=[v["wer"] for v in curves["validation"]],
            name="validation WER", mode="lines+markers", yaxis="y2",
        )  # fmt: skip
        out.append(figure)
    return out
