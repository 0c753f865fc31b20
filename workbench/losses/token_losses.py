"""Task and distillation loss of every token with a custom backward pass.

The vocabulary is Whisper's largest axis (51,865). Left to autograd, cross-entropy and divergence each keep several fp32
copies of [labels, vocabulary]; here the rows go through in chunks that are upcast to fp32, only the logits are kept, and
the gradient of both losses is written in one pass.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from workbench.core.autograd import Context

CHUNK_ROWS = {"cpu": 32, "cuda": 1024}  # rows upcast at a time: what a CPU's cache holds, what keeps a GPU busy


class _Tempered(Context, Protocol):
    temperature: float


class TokenLosses(torch.autograd.Function):
    """Cross-entropy and forward KL of each label from top-k or sampled targets, differentiable in the logits.

    See `objectives.forward_kl_top_k` and `divergences.sampled_kl`.

    With q = softmax(z / tau), p the teacher's probabilities of its k largest and p_t, q_t the mass of the rest:
    dKL/dz_j = tau (q_j - p_j) for the k largest, and tau q_j (1 - p_t / q_t) for every other token.
    From a sample with weights w it is tau (q_j - w_j), which is the same with p_t = 0 and p = w.
    """

    @staticmethod
    def forward(
        ctx: _Tempered,
        logits: Tensor,
        labels: Tensor,
        top_ids: Tensor,
        top_logits: Tensor,
        log_normalizer: Tensor,
        temperature: float,
        sampled: bool,
    ) -> tuple[Tensor, Tensor]:
        """Losses of each label, fp32.

        Args:
            ctx: autograd's.
            logits: student's [labels, vocabulary], any floating type.
            labels: int64 [labels].
            top_ids: int64 ids of the teacher's largest logits [labels, k].
            top_logits: those logits [labels, k].
            log_normalizer: logsumexp of the teacher's full logits / temperature [labels].
            temperature: tau.
            sampled: `top_ids` are a sample, `top_logits` its weights, `log_normalizer` the teacher's entropy.

        Returns:
            Cross-entropy [labels] and tau^2 * KL [labels].
        """
        task, divergence = logits.new_empty(2, len(labels), dtype=torch.float32)
        normalizer = torch.empty_like(task)  # logsumexp(z)
        softened = torch.empty_like(task)  # logsumexp(z / tau)
        if sampled:
            p = top_logits.float()  # [labels, k]
            p_tail = torch.zeros_like(task)
        else:
            p = (top_logits.float() / temperature - log_normalizer[:, None].float()).exp()  # [labels, k]
            p_tail = (1 - p.sum(-1)).clamp(min=0)
        q_tail = torch.empty_like(task)
        for rows in _chunks(logits):
            z = logits[rows].float()
            normalizer[rows] = z.logsumexp(-1)
            task[rows] = normalizer[rows] - z.gather(-1, labels[rows, None])[:, 0]
            softened[rows] = normalizer[rows] if temperature == 1.0 else (z / temperature).logsumexp(-1)
            log_q = z.gather(-1, top_ids[rows]) / temperature - softened[rows, None]
            q_tail[rows] = (1 - log_q.exp().sum(-1)).clamp(min=torch.finfo(torch.float32).eps)
            if sampled:
                cross = -(p[rows] * log_q).sum(-1)
                divergence[rows] = temperature**2 * (cross - log_normalizer[rows].float())
                continue
            inside = (torch.special.xlogy(p[rows], p[rows]) - p[rows] * log_q).sum(-1)
            outside = torch.special.xlogy(p_tail[rows], p_tail[rows]) - p_tail[rows] * q_tail[rows].log()
            divergence[rows] = temperature**2 * (inside + outside)
        ctx.save_for_backward(logits, labels, top_ids, p, p_tail / q_tail, normalizer, softened)
        ctx.temperature = temperature
        return task, divergence

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Tempered, task: Tensor, divergence: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        """Gradient with respect to the logits, in their type."""
        logits, labels, top_ids, p, tail_ratio, normalizer, softened = ctx.saved_tensors
        tau = ctx.temperature
        gradient = torch.empty_like(logits)
        for rows in _chunks(logits):
            task_rows, kl_rows = task[rows, None], tau * divergence[rows, None]
            z = logits[rows].float()
            q = (z / tau - softened[rows, None]).exp_() if tau != 1.0 else (z - softened[rows, None]).exp_()
            q_top = q.gather(-1, top_ids[rows])
            # every token as if it were in the tail, then the k largest and the label corrected
            tail = kl_rows * (1 - tail_ratio[rows, None])
            if tau == 1.0:
                out = q.mul_(task_rows + tail)
            else:
                out = q.mul_(tail).add_((z - normalizer[rows, None]).exp_().mul_(task_rows))
            out.scatter_add_(-1, top_ids[rows], kl_rows * (q_top * tail_ratio[rows, None] - p[rows]))
            out.scatter_add_(-1, labels[rows, None], -task_rows)
            gradient[rows] = out
        return gradient, None, None, None, None, None, None


def token_losses(
    logits: Tensor,
    labels: Tensor,
    top_ids: Tensor,
    top_logits: Tensor,
    log_normalizer: Tensor,
    temperature: float,
    sampled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy [labels] and tau^2 * KL [labels]; see `TokenLosses.forward` for the arguments."""
    losses: tuple[Tensor, Tensor] = TokenLosses.apply(  # type: ignore[no-untyped-call]
        logits, labels, top_ids, top_logits, log_normalizer, temperature, sampled
    )
    return losses


def _chunks(logits: Tensor) -> list[slice]:
    rows = CHUNK_ROWS.get(logits.device.type, 1024)
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]
