"""What safetensors' `safe_open` gives, whose methods have no types."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TensorSlice(Protocol):
    """A tensor in a file of which only the header has been read."""

    def get_shape(self) -> list[int]:
        """Its shape."""
        ...

    def get_dtype(self) -> str:
        """Its type by safetensors' own name, such as F32."""
        ...


class TensorFile(Protocol):
    """An open safetensors file, read as torch tensors."""

    def keys(self) -> list[str]:
        """Names of the tensors."""
        ...

    def get_tensor(self, name: str, /) -> Tensor:
        """Read one."""
        ...

    def get_slice(self, name: str, /) -> TensorSlice:
        """Open one."""
        ...
