"""What is logged of a step: means over its utterances, of all micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workbench.training.step.losses import StepLosses

COLUMNS = (
    "task",
    "distillation",
    "matching",
    "alpha_mean",
    "task_weight_mean",
    "on_policy",
)  # values that every utterance has


class StepMetrics:
    """Sums and counts of a step's values. One whose count is 0 is NaN, which the run's log leaves out."""

    def __init__(self, log_names: Sequence[str], device: torch.device) -> None:
        """Start a step.

        Args:
            log_names: names in the weighting's `Weights.log` and of the stage's further losses, the same on every process.
            device: where the sums are kept, so that adding to them does not wait for a GPU.
        """
        self.names = ("loss", "disagreement", *COLUMNS, *log_names)
        self.totals = torch.zeros(len(self.names), 2, device=device)  # sum and count of each

    def add(self, losses: StepLosses) -> None:
        """Add a micro-batch; placeholders must not be added.

        Raises:
            ValueError: the weighting logs a name that its `log_names` does not list.
        """
        if unknown := set(losses.log) - set(self.names):
            raise ValueError(f"a weighting logs {sorted(unknown)}, which its attribute `log_names` does not list")
        utterances = torch.ones_like(losses.task)
        columns = {
            "task": losses.task,
            "distillation": losses.distillation,
            "matching": losses.matching,
            "alpha_mean": losses.alpha,
            "task_weight_mean": losses.task_weight,
            "on_policy": utterances * float(losses.on_policy),
            **{name: utterances * value for name, value in losses.log.items()},
            **losses.terms,
        }
        for name, column in columns.items():
            known = column.isfinite()
            self._add(name, torch.where(known, column, 0.0).sum(), known.sum())
        self._add(
            "disagreement", losses.disagreements if losses.compared else 0.0 * losses.disagreements, losses.compared
        )
        self._add("loss", losses.loss.detach(), 0)

    def means(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Values by name; the loss is a sum of shares, all others are means. `total` sums over the processes."""
        totals = total(self.totals)
        values = totals[:, 0] / totals[:, 1]
        values[0] = totals[0, 0]
        return dict(zip(self.names, values, strict=True))

    def _add(self, name: str, value: Tensor, count: Tensor | int) -> None:
        row = self.totals[self.names.index(name)]
        row[0] += value
        row[1] += count
