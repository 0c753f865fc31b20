"""The student's prediction for a noisy or masked clip matched with its own for the clean clip.

Consistency training (UDA, arXiv 1904.12848, section 2.2): KL(prediction for the clean input || prediction for the augmented one), the
former without a gradient. Noise and masks of `augment` are in the student's input only, so its distillation loss already
matches a noisy clip with the teacher's targets of the clean one; this term is the student's own.

Our interpretation: predictions are the distributions at each label under teacher forcing, at temperature 1 and without UDA's sharpening or
its confidence threshold; an utterance's loss is the mean over its labels, with a constant factor whatever the weighting.
"""

from __future__ import annotations

from torch import Tensor

from workbench.config.sections import DivergenceRecipe
from workbench.losses.divergences import SoftTargets, distillation
from workbench.losses.objectives import per_utterance
from workbench.training.step.batches import Batch

CONSISTENCY = "consistency"  # in metrics.jsonl


def consistency_losses(logits: Tensor, clean: Tensor, batch: Batch) -> Tensor:
    """KL(clean || augmented) of each utterance, differentiable in the augmented logits.

    Args:
        logits: the student's for the augmented clips [labels, vocabulary].
        clean: its logits for the clean ones, the same shape; no gradient goes there.
        batch: says which utterance each label belongs to.

    Returns:
        fp32 [utterances].
    """
    by_label = distillation(logits, SoftTargets.full(clean, 1.0), DivergenceRecipe(), 1.0)
    return per_utterance(by_label, batch.utterance_index, len(batch.ids))
