"""What the processes of a distributed run agree on; with one process each answer is its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.memory import Peak


class Processes:
    """A run's processes. Every method must be called by all of them."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.count: int = accelerator.num_processes
        self.main: bool = accelerator.is_main_process

    def gathered(self, found: dict[str, Any]) -> dict[str, Any]:
        """The entries of all processes' dictionaries."""
        if self.count == 1:
            return found
        from accelerate.utils import gather_object

        return {key: value for part in gather_object([found]) for key, value in part.items()}

    def together(self, wish: bool) -> bool:
        """The main process's answer, for what all must do or none."""
        if self.count == 1:
            return wish
        return bool(self.summed(torch.tensor([float(wish and self.main)]))[0])

    def summed(self, values: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.count == 1:
            return values
        total: Tensor = self.accelerator.reduce(values.to(self.accelerator.device), reduction="sum")
        return total

    def smallest(self, value: float) -> float:
        """Smallest of the processes' values."""
        if self.count == 1:
            return value
        mine = torch.tensor([float(value)], device=self.accelerator.device)
        return float(self.accelerator.gather(mine).min())

    def worst_of(self, peak: Peak | None) -> tuple[bool, float]:
        """Whether any process ran out of memory, and the largest share of the free memory that one took."""
        failed, share = (peak.failed, peak.used / max(peak.free, 1)) if peak else (False, 0.0)
        return self.smallest(-float(failed)) < 0, -self.smallest(-share)
