"""What is kept of a teacher's distribution at each label: its k largest logits, all logits, or an unbiased sample of tokens.

With a temperature above 1 the k largest logits hold only part of the probability, and the KL over them with the rest as one bucket
is another loss than the full one. All logits in fp16 give the full one at 2 bytes per token of the vocabulary. A sample gives the full KL
and its gradient in expectation (Random Sampling Knowledge Distillation, arXiv 2503.16870).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

TargetKind = Literal["top_k", "full", "sampled"]
StoredTargets = tuple[
    Tensor, Tensor, Tensor
]  # ids, values and one number of each label; what they are depends on the kind
SMALLEST_FP16 = -60_000.0


def top_k_targets(logits: Tensor, k: int, temperature: float) -> StoredTargets:
    """The k largest logits. logits: [labels, vocabulary].

    Returns:
        Ids int32 [labels, k], logits fp32 [labels, k], logsumexp(logits / temperature) [labels].
    """
    top = logits.float().topk(min(k, logits.shape[-1]), -1)
    return top.indices.int(), top.values, (logits.float() / temperature).logsumexp(-1)


def full_targets(logits: Tensor) -> StoredTargets:
    """All logits below their maximum, where fp16 is finest. logits: [labels, vocabulary].

    Returns:
        The likeliest token int32 [labels, 1], logits - maximum in fp16 [labels, vocabulary], the maximum fp32 [labels].
    """
    most = logits.float().max(-1)
    below = (logits.float() - most.values[:, None]).clamp(min=SMALLEST_FP16)
    return most.indices[:, None].int(), below.half(), most.values


def sampled_targets(logits: Tensor, k: int, samples: int, temperature: float, seed: int) -> StoredTargets:
    """The k likeliest tokens with their probability, and others drawn from the rest, each with an equal share of its mass.

    With weights w, sum w f(token) has the expectation sum p f(token) for every f, p = softmax(logits / temperature): the estimate of the
    KL and its gradient is unbiased. The source draws all tokens; keeping the likeliest and drawing the others in strata of equal mass
    leaves the expectation as it is and lowers the variance (our interpretation).

    Args:
        logits: [labels, vocabulary].
        k: tokens kept for certain, the likeliest first.
        samples: draws from the others, with replacement.
        temperature: tau.
        seed: seed of the draws; the same one gives the same tokens.

    Returns:
        Ids int32 [labels, k + samples], weights fp32 [labels, k + samples] that add up to 1, entropy of p in nats [labels].
    """
    log_p = (logits.float() / temperature).log_softmax(-1)
    p = log_p.exp()
    top = p.topk(min(k, p.shape[-1]), -1)
    rest = p.scatter(-1, top.indices, 0.0).double()
    mass = rest.cumsum(-1)  # [labels, vocabulary]
    uniform = np.random.default_rng(seed).random((len(logits), samples))
    strata = (torch.from_numpy(uniform).to(mass.device) + torch.arange(samples, device=mass.device)) / samples
    drawn = torch.searchsorted(mass, strata * mass[:, -1:], right=True).clamp(max=p.shape[-1] - 1)
    share = (1 - top.values.double().sum(-1, keepdim=True)).clamp(min=0) / samples
    weights = torch.cat([top.values, share.float().expand(-1, samples)], -1)
    return torch.cat([top.indices, drawn], -1).int(), weights, -(p * log_p).sum(-1)


def likeliest(kind: TargetKind, ids: Tensor, values: Tensor, k: int) -> Tensor:
    """Ids that a narrowed vocabulary must have for targets to be usable: those kept, and of all logits the k largest."""
    return values.topk(min(k, values.shape[-1]), -1).indices if kind == "full" else ids


def bytes_per_label(kind: TargetKind, k: int, samples: int, vocabulary: int) -> int:
    """Size on disk of what is kept at one label."""
    tokens = min(k, vocabulary)
    return {"top_k": 8 * tokens + 4, "full": 2 * vocabulary + 8, "sampled": 8 * (tokens + samples) + 4}[kind]
