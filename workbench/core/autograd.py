"""What a torch.autograd.Function is given to remember things by."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Context(Protocol):
    """Autograd's context, with the tensors that its forward pass has kept; a Function that keeps more has a subclass that says what."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """What `save_for_backward` was given."""
        ...

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the backward pass."""
        ...
