"""Distillation losses of each label between a student and a teacher's distribution; pure functions of tensors.

A teacher's distribution is given by its full logits, by its k largest with all other tokens as one bucket, or by a weighted sample of
tokens (soft_targets.py). Every divergence here but `logit_mse` is an f-divergence, which merging tokens into a bucket can only lower:
with a bucket each is a lower bound of the one over the full vocabulary (our interpretation: the sources keep full logits). From a sample
only forward KL can be computed, whose expectation is the full one; `config.sections.TARGETS_OF` lists the kinds of targets that each
divergence supports.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.config.sections import TARGETS_OF, DivergenceRecipe
from workbench.core.errors import UserError
from workbench.losses.objectives import cross_entropy
from workbench.losses.token_losses import token_losses

SMALLEST = torch.finfo(torch.float32).eps  # lower bound of a bucket's probability before its logarithm is taken


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's distribution at each label."""

    ids: Tensor | None  # int64 [labels, k]: its likeliest tokens; None: `logits` are of the whole vocabulary
    logits: Tensor  # [labels, k] or [labels, vocabulary], before the temperature
    log_normalizer: Tensor  # [labels]: logsumexp of its full logits / temperature

    @classmethod
    def full(cls, logits: Tensor, temperature: float) -> SoftTargets:
        """From logits of the whole vocabulary [labels, vocabulary]."""
        detached = logits.detach().float()
        return cls(None, detached, (detached / temperature).logsumexp(-1))


@dataclass(frozen=True)
class SampledTargets:
    """A teacher's distribution at each label as a weighted sample of tokens."""

    ids: Tensor  # int64 [labels, tokens]; a token may be there more than once
    weights: Tensor  # [labels, tokens]: the expectation of their sum over a token's places is its probability
    entropy: Tensor  # [labels]: of the teacher's whole distribution, in nats


def task_and_distillation_losses(
    logits: Tensor,
    labels: Tensor,
    targets: SoftTargets | SampledTargets,
    divergence: DivergenceRecipe,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Task and distillation loss of each label, in fp32, differentiable in the student's logits.

    Args:
        logits: the student's [labels, vocabulary].
        labels: int64 [labels].
        targets: the teacher's distribution there.
        divergence: which distillation loss.
        temperature: tau.

    Returns:
        Cross-entropy [labels] and tau^2 * divergence [labels].

    Raises:
        UserError: the divergence cannot be computed from sampled targets.
    """
    if isinstance(targets, SampledTargets):
        _check_sampled(divergence)
        return token_losses(logits, labels, targets.ids, targets.weights, targets.entropy, temperature, sampled=True)
    if divergence.name == "forward_kl" and targets.ids is not None:
        return token_losses(logits, labels, targets.ids, targets.logits, targets.log_normalizer, temperature)
    return cross_entropy(logits, labels), distillation(logits, targets, divergence, temperature)


def distillation(
    logits: Tensor, targets: SoftTargets | SampledTargets, divergence: DivergenceRecipe, temperature: float
) -> Tensor:
    """tau^2 * divergence of each label; for `logit_mse` the squared error itself. logits: [labels, vocabulary] -> [labels]

    Raises:
        UserError: the divergence cannot be computed from sampled targets.
    """
    if isinstance(targets, SampledTargets):
        _check_sampled(divergence)
        return sampled_kl(logits, targets, temperature)
    if divergence.match_gradient and divergence.name != "forward_kl":
        plain = divergence.model_copy(update={"match_gradient": False})
        return gradient_ratio(logits, targets, plain, temperature) * distillation(logits, targets, plain, temperature)
    if divergence.name == "logit_mse":
        return logit_mse(logits, targets, divergence.teacher_scale)
    log_p, log_q = log_buckets(logits, targets, temperature)
    return temperature**2 * divergence_of_log_probs(log_p, log_q, divergence)


def gradient_ratio(logits: Tensor, targets: SoftTargets, divergence: DivergenceRecipe, temperature: float) -> Tensor:
    """How many times as large forward KL's gradient with respect to the logits is as a divergence's, by the norm over all labels. -> scalar

    The gradient of a divergence times this factor differs from forward KL's in direction only, not in size: near agreement the gradient of
    the Jensen-Shannon divergence is a quarter of the KL's, which acts like a smaller alpha (our interpretation: no source matches the two).
    """
    norms = []
    with torch.enable_grad():
        for one in (DivergenceRecipe(), divergence):
            at = logits.detach().float().requires_grad_()
            (gradient,) = torch.autograd.grad(distillation(at, targets, one, temperature).sum(), at)
            norms.append(gradient.norm())
    ratio: Tensor = norms[0] / norms[1].clamp(min=SMALLEST)
    return ratio


def sampled_kl(logits: Tensor, targets: SampledTargets, temperature: float) -> Tensor:
    """Unbiased estimate of tau^2 * KL(p || q) from tokens drawn from p; one estimate may be below 0. [labels, vocabulary] -> [labels]

    Its gradient with respect to the logits, tau * (q - w), has the expectation of the full one's, tau * (q - p) (arXiv 2503.16870).
    """
    log_q = F.log_softmax(logits.float() / temperature, -1).gather(-1, targets.ids)
    return temperature**2 * (-(targets.weights * log_q).sum(-1) - targets.entropy)


def _check_sampled(divergence: DivergenceRecipe) -> None:
    if "sampled" not in (kinds := TARGETS_OF[divergence.name]):
        raise UserError(
            f"divergence {divergence.name} cannot be computed from targets.kind sampled; use {' or '.join(kinds)}"
        )


def divergence_of_log_probs(log_p: Tensor, log_q: Tensor, divergence: DivergenceRecipe) -> Tensor:
    """Divergence of the student's q from the teacher's p. log_p, log_q: [labels, buckets] -> [labels]

    forward_kl: KL(p || q). reverse_kl: KL(q || p) (MiniLLM, arXiv 2306.08543).
    jsd: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q (GKD, arXiv 2306.13649).
    skew_kl: KL(p || alpha p + (1 - alpha) q). skew_reverse_kl: KL(q || alpha q + (1 - alpha) p) (DistiLLM, arXiv 2402.03898).
    """
    p, q = log_p.exp(), log_q.exp()
    if divergence.name == "forward_kl":
        return _kl(p, log_p, log_q)
    if divergence.name == "reverse_kl":
        return _kl(q, log_q, log_p)
    if divergence.name == "skew_kl":
        return _kl(p, log_p, (divergence.alpha * p + (1 - divergence.alpha) * q).log())
    if divergence.name == "skew_reverse_kl":
        return _kl(q, log_q, (divergence.alpha * q + (1 - divergence.alpha) * p).log())
    log_m = (divergence.beta * p + (1 - divergence.beta) * q).log()
    return divergence.beta * _kl(p, log_p, log_m) + (1 - divergence.beta) * _kl(q, log_q, log_m)


def log_buckets(logits: Tensor, targets: SoftTargets, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teacher and student over the same buckets. -> twice [labels, k + 1] or [labels, vocabulary]"""
    log_q = F.log_softmax(logits.float() / temperature, -1)
    log_p = targets.logits.float() / temperature - targets.log_normalizer[:, None]
    if targets.ids is not None:
        log_q = log_q.gather(-1, targets.ids)
        log_p, log_q = (
            torch.cat([x, (1 - x.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST).log()], -1) for x in (log_p, log_q)
        )
    return log_p.clamp(min=-80), log_q.clamp(min=-80)  # exp of less is 0 in fp32, and 0 * inf is NaN


def logit_mse(logits: Tensor, targets: SoftTargets, teacher_scale: float = 1.0) -> Tensor:
    """Squared error of the raw logits against the teacher's times `teacher_scale`. [labels, vocabulary] -> [labels]

    The mean over the vocabulary; of the k largest logits, their sum over k. Of the other tokens it is known that the teacher's
    logits are at most its k-th, so what the student's exceed that by is an error too: unconstrained, they outgrow logits that are scaled
    down, and the student no longer writes anything. The sum is a lower bound of the one over the vocabulary (our
    interpretation: the source has all logits).
    """
    ours, theirs = logits.float(), teacher_scale * targets.logits.float()
    if targets.ids is None:
        return (ours - theirs).square().mean(-1)
    inside = (ours.gather(-1, targets.ids) - theirs).square().sum(-1)
    excess = (ours - theirs.min(-1, keepdim=True).values).clamp(min=0).square()
    outside = excess.sum(-1) - excess.gather(-1, targets.ids).sum(-1)
    return (inside + outside) / targets.ids.shape[-1]


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    return (p * (log_p - log_q)).sum(-1)
