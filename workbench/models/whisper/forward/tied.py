"""A matrix that is both embedding and output projection, with one gradient instead of two to be added.

Autograd would make a gradient of [vocabulary, width] for each use, zero-filled for the embedding, and add them up; for a shallow student
that costs more than its layers. Here the projection hands its gradient to the embedding, whose backward
comes last and adds the few rows that were looked up.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.autograd import Context


class TiedMatrix:
    """One use of the matrix as embedding and one as projection, in that order, in one forward pass."""

    def __init__(self, weight: Tensor, padding_id: int | None) -> None:
        """Take the matrix [vocabulary, width]; the embedding of `padding_id` gets no gradient, as in torch."""
        self.weight, self.padding_id = weight, padding_id
        self.projected: Tensor | None = None  # gradient of the projection, on its way to the embedding

    def embed(self, ids: Tensor) -> Tensor:
        """Look up. int64 [..., tokens] -> [..., tokens, width]"""
        embedded: Tensor = _Embed.apply(self.weight, ids, self)  # type: ignore[no-untyped-call]
        return embedded

    def project(self, hidden: Tensor) -> Tensor:
        """Logits. [rows, width] -> [rows, vocabulary]"""
        logits: Tensor = _Project.apply(hidden, self.weight, self)  # type: ignore[no-untyped-call]
        return logits


class _Projecting(Context, Protocol):
    matrix: TiedMatrix


class _Embedding(_Projecting, Protocol):
    shape: torch.Size  # of the matrix


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Embedding, weight: Tensor, ids: Tensor, matrix: TiedMatrix) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.matrix, ctx.shape = matrix, weight.shape
        return F.embedding(ids, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Embedding, gradient: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        matrix = ctx.matrix
        total, matrix.projected = matrix.projected, None
        if total is None:  # nothing was projected
            total = gradient.new_zeros(ctx.shape, dtype=torch.float32)
        rows = gradient.flatten(0, -2).to(total.dtype)
        flat = ids.flatten()
        if matrix.padding_id is not None:
            rows = rows * (flat != matrix.padding_id)[:, None]
        return total.index_add_(0, flat, rows), None, None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Projecting, hidden: Tensor, weight: Tensor, matrix: TiedMatrix) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.matrix = matrix
        return F.linear(hidden, weight)  # under autocast in its lower precision

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Projecting, gradient: Tensor) -> tuple[Tensor, None, None]:
        hidden, weight = ctx.saved_tensors
        ctx.matrix.projected = (gradient.t() @ hidden.to(gradient.dtype)).to(weight.dtype)
        return (gradient @ weight.to(gradient.dtype)).to(hidden.dtype), None, None
