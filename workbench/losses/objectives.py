"""Task losses and divergences, pure functions of tensors, one value per utterance.

Losses come flat over the labelled positions of a batch ([labels]) with the index of the utterance that each belongs to
([labels]), and are averaged within each utterance, so that weighting is at the level of the instance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def per_utterance(values: Tensor, utterance_index: Tensor, utterances: int) -> Tensor:
    """Mean of the values of each utterance. values, utterance_index: [labels] -> [utterances]"""
    total = values.new_zeros(utterances).index_add(0, utterance_index, values)
    count = values.new_zeros(utterances).index_add(0, utterance_index, torch.ones_like(values))
    return total / count.clamp(min=1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Task loss at each label, in fp32. logits: [labels, vocabulary], labels: [labels] -> [labels]"""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """tau^2 * KL(teacher || student) over the full vocabulary (Hinton et al. 2015). [labels, vocabulary] -> [labels]"""
    log_q = F.log_softmax(student.float() / temperature, -1)
    log_p = F.log_softmax(teacher.float() / temperature, -1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def forward_kl_top_k(
    student: Tensor, top_ids: Tensor, top_logits: Tensor, log_normalizer: Tensor, temperature: float = 1.0
) -> Tensor:
    """tau^2 * KL(teacher || student) from the teacher's k largest logits, all other tokens as one bucket.

    Merging tokens into a bucket can only lower a KL divergence, so this is a lower bound of the full one; with k equal
    to the vocabulary it is the full one. Our interpretation: the sources keep full logits.

    Args:
        student: logits [labels, vocabulary].
        top_ids: int64 ids of the teacher's largest logits [labels, k].
        top_logits: those logits, before the temperature [labels, k].
        log_normalizer: logsumexp of the teacher's full logits / temperature [labels].
        temperature: tau.

    Returns:
        Loss at each label [labels].
    """
    log_q = F.log_softmax(student.float() / temperature, -1).gather(-1, top_ids)  # [labels, k]
    log_p = top_logits.float() / temperature - log_normalizer[:, None]
    inside = (log_p.exp() * (log_p - log_q)).sum(-1)
    p_tail = (1 - log_p.exp().sum(-1)).clamp(min=0)
    q_tail = (1 - log_q.exp().sum(-1)).clamp(min=torch.finfo(torch.float32).eps)
    outside = torch.special.xlogy(p_tail, p_tail) - p_tail * q_tail.log()
    loss: Tensor = temperature**2 * (inside + outside)
    return loss


def state_mse(student: Tensor, teacher: Tensor, frames: Tensor) -> Tensor:
    """Mean squared error of layer-normalised encoder states at the positions that both have.

    Args:
        student: states [utterances, positions, width].
        teacher: states [utterances, positions, width], padded.
        frames: number of encoder positions that both have, for each utterance [utterances].

    Returns:
        Loss of each utterance [utterances].
    """
    positions = min(student.shape[1], teacher.shape[1])
    width = student.shape[-1:]
    ours = F.layer_norm(student[:, :positions].float(), width)
    theirs = F.layer_norm(teacher[:, :positions].float(), width)
    error = (ours - theirs).square().mean(-1)  # [utterances, positions]
    valid = torch.arange(positions, device=frames.device) < frames[:, None]
    return (error * valid).sum(1) / valid.sum(1).clamp(min=1)
