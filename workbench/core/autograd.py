"""The object in which a torch.autograd.Function keeps values for its backward pass."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Context(Protocol):
    """Autograd's context, with the tensors that the forward pass has kept; a Function that keeps more values declares them in a subclass."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """What `save_for_backward` was given."""
        ...

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the backward pass."""
        ...
