"""Distances between what decoder layers of a student and a teacher compute, at each label; pure functions of tensors.

TinyBERT (arXiv 1909.10351, section 4.1) takes the mean squared error of hidden states, MiniLM (arXiv 2002.10957, section 3.1) the KL
divergence of attention distributions. Our interpretation: states are layer-normalised before they are compared, since the residual
stream of a Whisper decoder grows from layer to layer; and the attention is the one to the encoder's states, the decoder's alignment of
text and speech, of which the student has only the clip's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def hidden_state_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of layer-normalised states, the mean over layers. [layers, labels, width] -> fp32 [labels]"""
    width = student.shape[-1:]
    ours, theirs = (F.layer_norm(states.float(), width) for states in (student, teacher))
    return (ours - theirs).square().mean((0, 2))


def attention_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor, pooling: int = 1) -> Tensor:
    """KL(teacher || student) of cross-attention distributions, the mean over heads and layers.

    The teacher may attend to positions that the student does not have, the silence up to 30 s: its distribution is the one over the
    student's positions. Heads are compared one by one; where the two have not as many, the means over the heads are. Both are our
    interpretation.

    Args:
        student: logarithms [layers, labels, heads, positions], -inf where a clip has none.
        teacher: logarithms [layers, labels, heads, positions of the teacher], which are at least as many once they are pooled.
        attention_mask: which positions the student has at each label, bool [labels, positions].
        pooling: the teacher's positions in one of the student's.

    Returns:
        fp32 [labels].
    """
    mask = attention_mask[:, None]  # [labels, 1, positions]
    # what is masked is not -inf from here on: its gradient would be NaN
    p, log_q = teacher.float().exp(), torch.where(mask, student.float(), 0.0)
    if p.shape[2] != log_q.shape[2]:
        p, log_q = p.mean(2, keepdim=True), log_q.exp().mean(2, keepdim=True).log()
    if pooling > 1:
        p = F.pad(p, (0, -p.shape[-1] % pooling)).unflatten(-1, (-1, pooling)).sum(-1)
    p = torch.where(mask, p[..., : log_q.shape[-1]], 0.0)
    p = p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    each = torch.xlogy(p, p) - torch.where(mask, p * log_q, 0.0)
    return each.sum(-1).mean((0, 2))
