"""Mixup of two clips of a micro-batch, whose decoder learns both transcripts.

MixSpeech (arXiv 2102.12664): the features of two clips are added with the weights lambda and 1 - lambda, lambda ~ Beta(alpha, alpha), and the
loss is lambda times that of the first transcript plus 1 - lambda times that of the second, each decoded from the mixed audio. MixKD
(arXiv 2011.00593) mixes for distillation: there the teacher reads the mixed input.

Our interpretation: the teacher's targets are cached, so they are those of the two clean clips, with the same weights as the labels; whole
micro-batches are mixed, all their clips with one lambda, each clip being mixed into one other; a frozen encoder's cached states
are mixed instead of features, and where one of the two clips has ended, the other's states are taken whole; and a micro-batch of one clip,
an on-policy one, and all of a student that teaches itself are left as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.config.additions import MixupRecipe
from workbench.training.step.batches import Batch

MIXED = "mixed"  # share of the utterances that were mixed, in metrics.jsonl


@dataclass(frozen=True)
class Mix:
    """How the clips of a micro-batch are mixed."""

    share: float  # lambda: of each clip's own audio
    partner: Tensor  # int64 [utterances]: the clip whose audio is mixed into each one's
    host: Tensor  # int64 [utterances]: the clip into whose audio each one is mixed

    def audio(self, audio: Tensor, attention_mask: Tensor, encoded: bool) -> tuple[Tensor, Tensor]:
        """The student's mixed input, and the encoder positions that either clip has.

        Args:
            audio: features [utterances, mels, frames], or encoder states [utterances, positions, width].
            attention_mask: positions that each clip has, bool [utterances, positions].
            encoded: whether `audio` is encoder states.
        """
        other = attention_mask[self.partner]
        if not encoded:  # what is beyond a clip's end is silence, which has features too
            return self.share * audio + (1 - self.share) * audio[self.partner], attention_mask | other
        shares = torch.stack([self.share * attention_mask, (1 - self.share) * other])[..., None]
        shares = shares / shares.sum(0).clamp(min=torch.finfo(torch.float32).eps)  # [2, utterances, positions, 1]
        return shares[0] * audio + shares[1] * audio[self.partner], attention_mask | other


def draw_mix(settings: MixupRecipe, batch: Batch) -> Mix | None:
    """How a micro-batch is mixed, drawn from its seed; None if it is not."""
    draw, clips = np.random.default_rng([*batch.seed, 5]), len(batch.ids)
    if draw.random() >= settings.fraction or clips < 2:
        return None
    order = draw.permutation(clips)
    partner = np.empty(clips, dtype=np.int64)
    partner[order] = np.roll(order, 1)  # one cycle through all clips, so that none is its own partner
    device = batch.inputs.device
    host = torch.from_numpy(np.argsort(partner)).to(device)
    return Mix(float(draw.beta(settings.alpha, settings.alpha)), torch.from_numpy(partner).to(device), host)


def mixed_losses(losses: Tensor, share: float) -> Tensor:
    """Each label's loss in its own clip's mix and in its host's, weighed. [..., 2 * labels] -> [..., labels]"""
    own, hosted = losses.chunk(2, -1)
    return share * own + (1 - share) * hosted
