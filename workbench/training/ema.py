"""Exponential moving average of the student's trained parameters; sharded where they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from workbench.run.checkpoints import sharded_like


class MovingAverage:
    """Follows the parameters with `average = decay * average + (1 - decay) * parameter` after every step.

    The decay rises from 0 as min(decay, (1 + steps) / (10 + steps)), so that the first steps do not pin the average to
    the initial student.

    It holds references to the parameters: build it after what replaces them (FSDP), or it follows tensors that are not trained.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the parameters after a step (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Temporarily use the average as the model's parameters, to validate or save it."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._fill(self.average)
        try:
            yield
        finally:
            self._fill(kept)

    def fill(self) -> None:
        """Set the model's parameters to the average for good."""
        self._fill(self.average)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, by parameter."""
        return self.average

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, from whole tensors or ones sharded alike."""
        for name, value in self.average.items():
            value.copy_(sharded_like(state[name], value))

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
