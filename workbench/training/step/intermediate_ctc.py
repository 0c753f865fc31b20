"""A loss of an earlier encoder layer of a CTC student: the student's own head reads its states, too.

`target: labels` is InterCTC (Lee and Watanabe 2021, arXiv 2102.03216): the loss of a step is (1 - w) times the last layer's plus w times the CTC
loss of the earlier one. With `target: self` the earlier layer learns what the student's last layer predicts at each frame: KL(last || earlier)
at temperature 1, the former without a gradient.

Our interpretation: the head is the last layer's, and so is the norm before it where the encoder ends with one, so that the student has no
other weights than without this loss; 1 - w is a factor of all that the weighting gives, the task losses and the distillation losses of
the last layer, and w of the earlier layer's, whatever the weighting; `encoder_matching` and `consistency` keep their own factors; a weighting that
looks ahead sees the last layer alone; frames that both layers call blank count less, as in distillation (losses/ctc.py); and an utterance counts as
`average_over` says.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from workbench.config.additions import IntermediateCtcRecipe
from workbench.config.sections import DivergenceRecipe
from workbench.core.errors import UserError
from workbench.losses.divergences import SoftTargets
from workbench.losses.objectives import per_utterance
from workbench.training.step.batches import Batch
from workbench.training.step.losses import Objective, StepLosses, StepSize, share_of_step

INTERMEDIATE = "intermediate_ctc"  # in metrics.jsonl


def check_layer(settings: IntermediateCtcRecipe, stage: str, depth: int) -> None:
    """Raise UserError unless a student of `depth` encoder layers has the layer, before its last one."""
    if settings.layer >= depth - 1:
        expected = (
            "it has a single encoder layer, so leave intermediate_ctc out"
            if depth == 1
            else f"expected 0 to {depth - 2}: the student has {depth} encoder layers, and the last one has the losses of its own"
        )
        raise UserError(f"stages.{stage}.intermediate_ctc.layer is {settings.layer}; {expected}")


def intermediate_losses(early: Tensor, last: Tensor, batch: Batch, objective: Objective) -> Tensor:
    """The earlier layer's loss of each utterance, differentiable in its logits alone.

    Args:
        early: logits of the earlier layer [frames, vocabulary].
        last: those of the last layer, the same shape; no gradient goes there.
        batch: transcripts, and which utterance each frame belongs to.
        objective: the stage's losses.

    Returns:
        fp32 [utterances].
    """
    stage, criterion, predictions = objective.stage, objective.criterion, batch.predictions()
    assert stage.intermediate_ctc is not None  # noqa: S101  called for such stages only
    if stage.intermediate_ctc.target == "labels":
        by_frame = criterion.task(early, predictions)
    else:
        divergence = DivergenceRecipe(blank_weight=stage.divergence.blank_weight)
        by_frame = criterion.distillation(early, predictions, SoftTargets.full(last, 1.0), divergence, 1.0)
    return per_utterance(by_frame, batch.utterance_index, len(batch.ids))


def with_intermediate(
    losses: StepLosses, early: Tensor, last: Tensor, batch: Batch, objective: Objective, size: StepSize
) -> StepLosses:
    """A micro-batch's losses, whose last layer's have the factor 1 - w already, with the earlier layer's; arguments as for `intermediate_losses`."""
    settings = objective.stage.intermediate_ctc
    assert settings is not None  # noqa: S101  called for such stages only
    each = intermediate_losses(early, last, batch, objective)
    loss = losses.loss + settings.weight * share_of_step(each, batch, objective.stage, size)
    return replace(losses, loss=loss, terms={**losses.terms, INTERMEDIATE: each.detach()})
