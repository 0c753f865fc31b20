"""Connectionist temporal classification: task loss of an utterance, its share at each frame, and the weights of frames in distillation.

An utterance's task loss is -log P(transcript | frames), summed over all alignments (Graves et al. 2006), divided by the number of its tokens.
It is given at every frame of the utterance, with the frame's part of the gradient: the mean over the frames is then the loss and its
gradient, as the mean over labels is for cross-entropy, and whatever weighs single predictions weighs frames here.

Distillation compares teacher and student frame by frame. Most frames are blank to both, and their divergence drowns that of the others;
leaving out all frames that are blank to the teacher does not always work (arXiv 2506.01503, which selects frames around the others instead).
Our interpretation: frame f has the weight 1 - (1 - b) * p_f(blank) * q_f(blank) with p the teacher's and q the student's probability at the
loss's temperature, so that only what both are sure of counts less, b times as much; weights are constants, and an utterance's loss is
their weighted mean.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.autograd import Context
from workbench.losses.divergences import SampledTargets, SoftTargets


class _Typed(Context, Protocol):
    dtype: torch.dtype  # of the logits


def frames_needed(tokens: Tensor) -> Tensor:
    """Fewest frames that an alignment has: one for each token, and a blank between equal neighbours.

    tokens: int64 [utterances, tokens], negative where there is none, from each utterance's start. -> int64 [utterances]
    """
    there = tokens >= 0
    again = (tokens[:, 1:] == tokens[:, :-1]) & there[:, 1:]
    return there.sum(1) + again.sum(1)


class CtcLosses(torch.autograd.Function):
    """-log P(transcript) / tokens of each frame's utterance, differentiable in the logits. See `ctc_losses`."""

    @staticmethod
    def forward(ctx: _Typed, logits: Tensor, tokens: Tensor, utterance_index: Tensor, blank: int) -> Tensor:
        """Losses [frames], fp32; arguments as for `ctc_losses`."""
        losses, gradient = utterance_losses(logits, tokens, utterance_index, blank)
        counts = (tokens >= 0).sum(1).clamp(min=1)
        frames = torch.bincount(utterance_index, minlength=len(tokens))
        # the mean over an utterance's frames divides by their number
        ctx.save_for_backward(gradient * (frames / counts)[utterance_index, None])
        ctx.dtype = logits.dtype
        return (losses / counts)[utterance_index]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Typed, output: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient with respect to the logits, in their type."""
        (gradient,) = ctx.saved_tensors
        return (output[:, None] * gradient).to(ctx.dtype), None, None, None


def ctc_losses(logits: Tensor, tokens: Tensor, utterance_index: Tensor, blank: int) -> Tensor:
    """Task loss of each frame's utterance, whose mean over the utterance's frames has the gradient of the loss.

    A transcript that needs more frames than its utterance has cannot be aligned: its loss and gradient are 0, never infinite.

    Args:
        logits: the student's [frames], of all utterances in order, [frames, vocabulary].
        tokens: transcripts, int64 [utterances, tokens], negative where there is none.
        utterance_index: utterance of each frame, int64 [frames], ascending.
        blank: id of the blank.

    Returns:
        fp32 [frames].
    """
    losses: Tensor = CtcLosses.apply(logits, tokens, utterance_index, blank)  # type: ignore[no-untyped-call]
    return losses


@torch.no_grad()
def utterance_losses(logits: Tensor, tokens: Tensor, utterance_index: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """-log P(transcript) of each utterance and its gradient with respect to the logits, both fp32; both 0 for one that cannot be aligned.

    -> [utterances], [frames, vocabulary]
    """
    lengths = torch.bincount(utterance_index, minlength=len(tokens))
    counts = (tokens >= 0).sum(1)
    fits = frames_needed(tokens) <= lengths
    with torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
        at = logits.detach().float().requires_grad_()
        rows = torch.split(at.log_softmax(-1), lengths.tolist())
        padded = torch.nn.utils.rnn.pad_sequence(list(rows))  # [frames of the longest, utterances, vocabulary]
        losses = F.ctc_loss(padded, tokens.clamp(min=0), lengths, torch.where(fits, counts, 0), blank, reduction="none")
        (gradient,) = torch.autograd.grad((losses * fits).sum(), at)
    return torch.where(fits, losses.detach(), 0.0), gradient


def aligned_tokens(logits: Tensor, tokens: Tensor, utterance_index: Tensor, blank: int) -> Tensor:
    """The token or blank that is likeliest at each frame given the transcript, over all its alignments; -1 where there is no alignment.

    The gradient of -log P is softmax(logits) less the probability of each token at the frame given the transcript.
    Arguments as for `ctc_losses`. -> int64 [frames]
    """
    _, gradient = utterance_losses(logits, tokens, utterance_index, blank)
    given = logits.float().softmax(-1) - gradient
    lengths = torch.bincount(utterance_index, minlength=len(tokens))
    fits = (frames_needed(tokens) <= lengths)[utterance_index]
    return torch.where(fits, given.argmax(-1), -1)


@torch.no_grad()
def frame_weights(
    logits: Tensor,
    targets: SoftTargets | SampledTargets,
    temperature: float,
    utterance_index: Tensor,
    blank: int,
    blank_weight: float,
    taught: Tensor | None = None,
) -> Tensor:
    """Weight of each frame in its utterance's distillation loss; the mean over an utterance's frames is 1.

    Args:
        logits: the student's [frames, vocabulary].
        targets: the teacher's distribution at each frame.
        temperature: tau of the loss.
        utterance_index: utterance of each frame, int64 [frames].
        blank: id of the blank.
        blank_weight: weight where both are sure of the blank.
        taught: bool [frames]: whether the teacher has this frame; all by default.

    Returns:
        fp32 [frames]; 0 where the teacher has no frame, or none of an utterance.
    """
    ours = (logits.float() / temperature).softmax(-1)[:, blank]
    weights = 1 - (1 - blank_weight) * ours * blank_probability(targets, temperature, blank)
    if taught is not None:
        weights = weights * taught
    utterances = int(utterance_index[-1]) + 1
    total = weights.new_zeros(utterances).index_add(0, utterance_index, weights)
    frames = torch.bincount(utterance_index, minlength=utterances)
    scale = frames / total.clamp(min=torch.finfo(torch.float32).tiny)
    return weights * torch.where(total > 0, scale, 0.0)[utterance_index]


def blank_probability(targets: SoftTargets | SampledTargets, temperature: float, blank: int) -> Tensor:
    """A teacher's probability of the blank; 0 where it is not among the tokens that were kept. -> [frames]"""
    if isinstance(targets, SampledTargets):
        return (targets.weights * (targets.ids == blank)).sum(-1).clamp(max=1)
    log_p = targets.logits.float() / temperature - targets.log_normalizer[:, None]
    if targets.ids is None:
        return log_p[:, blank].exp()
    return (log_p.exp() * (targets.ids == blank)).sum(-1).clamp(max=1)
