"""Decoder layers of the student matched with layers of the teacher: their hidden states, and where their cross-attention attends.

Hidden states as in TinyBERT (arXiv 1909.10351), attention as in MiniLM (arXiv 2002.10957); losses/layer_matching.py says what is compared.
The cache holds no hidden states, so the teacher's decoder runs in the step, on its encoder states at 30 s.

Our interpretation: the default layer map (TinyBERT's is spread evenly, MiniLM's has the last layer alone); only labelled positions count;
an utterance's loss is the mean over its labels, with a constant factor whatever the weighting; on an on-policy micro-batch the layers are
matched along the student's own transcripts; and once a student teaches itself (ASKD's second phase, which is without the teacher) no layer
is matched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from workbench.config.additions import DecoderMatchingRecipe
from workbench.config.recipe import Recipe
from workbench.core.errors import UserError
from workbench.losses.layer_matching import attention_loss, hidden_state_loss
from workbench.losses.objectives import per_utterance
from workbench.models.protocol import Family, LayerOutputs, Tokens
from workbench.models.students import choose_layers
from workbench.training.step.batches import Batch
from workbench.training.teaching.resident_teacher import ResidentTeacher, check_reads_window, full_ids

HIDDEN, ATTENTION = "hidden_matching", "attention_matching"  # in metrics.jsonl


def layer_map(
    settings: DecoderMatchingRecipe, student: int, teacher: int, copied: Sequence[int] | None, stage: str
) -> dict[int, int]:
    """Number of each of the student's layers that is matched -> the teacher's.

    Args:
        settings: the recipe's, whose `layers` are taken where they are given.
        student: how many decoder layers the student has.
        teacher: how many the teacher has.
        copied: the teacher's layer that each of the student's was copied from; None if they come from elsewhere.
        stage: the stage's name, for errors.

    Raises:
        UserError: a layer that the student or the teacher does not have.
    """
    if settings.layers is None:
        found = [(i + 1) * teacher // student - 1 for i in range(student)] if copied is None else list(copied)
        found = [max(0, layer) for layer in found]
        found[-1] = teacher - 1  # its states go into the projection, as the teacher's last ones do
        return dict(enumerate(found))
    for numbers, count, whose in (
        (settings.layers, student, "student"),
        (settings.layers.values(), teacher, "teacher"),
    ):
        for number in numbers:
            if not 0 <= number < count:
                raise UserError(
                    f"stages.{stage}.decoder_matching.layers: the {whose} has no decoder layer {number}; expected 0 to {count - 1}"
                )
    return dict(sorted(settings.layers.items()))


def stage_layers(
    recipe: Recipe, name: str, family: Family, student: nn.Module, teacher_family: Family, teacher: nn.Module
) -> dict[int, int]:
    """The layer map of a stage that matches decoder layers.

    Args:
        recipe: the run's recipe.
        name: the stage's name.
        family: the student's.
        student: the student.
        teacher_family: the teacher's.
        teacher: the stage's teacher.

    Raises:
        UserError: a layer is missing, or the teacher's encoder states at 30 s are of no use here.
    """
    stage = recipe.stages[name]
    assert stage.decoder_matching is not None  # noqa: S101  called for such stages only
    check_reads_window(recipe, name, "decoder_matching", teacher_family)
    if stage.decoder_matching.attention and family.pooling(student) < teacher_family.pooling(teacher):
        raise UserError(
            f"stages.{name}.decoder_matching.attention: the teacher pools its encoder's states and the student does not; set it to 0"
        )
    depth = teacher_family.decoder_depth(teacher)
    copied = (
        choose_layers(recipe.student.decoder_layers, depth, "decoder_layers")
        if recipe.student.init_from is None and recipe.teacher_of(name) == recipe.teacher
        else None
    )
    return layer_map(stage.decoder_matching, family.decoder_depth(student), depth, copied, name)


class DecoderMatching:
    """Runs the teacher's decoder on a micro-batch and compares its layers with the student's.

    Args:
        settings: factors of the losses.
        teacher: the stage's teacher.
        family: the student's, perhaps of a narrowed vocabulary.
        layers: the student's layers and the teacher's (`stage_layers`).
        pooling: the student's pooling of encoder positions.
    """

    def __init__(
        self,
        settings: DecoderMatchingRecipe,
        teacher: ResidentTeacher,
        family: Family,
        layers: Mapping[int, int],
        pooling: int,
    ) -> None:
        self.settings, self.teacher, self.family = settings, teacher, family
        self.pooling = pooling // teacher.family.pooling(
            teacher.model
        )  # the teacher's positions in one of the student's
        self.ours, self.theirs = list(layers), list(layers.values())

    def __call__(self, batch: Batch, ours: LayerOutputs) -> list[tuple[str, float, Tensor]]:
        """Name in the log, factor and value [utterances] of each loss, differentiable in the student's layers.

        Args:
            batch: the micro-batch, whose transcripts both decoders were given.
            ours: the student's layers, in the order of the map.
        """
        settings, teacher = self.settings, self.teacher
        with torch.no_grad():
            states = teacher.states(batch.ids, batch.inputs.device)
            tokens = Tokens(full_ids(batch.inputs, self.family), batch.labels)
            _, theirs = teacher.family.logits_and_layers(
                teacher.model, states, tokens, self.theirs, bool(settings.attention), batch.labelled
            )
        by_label: list[tuple[str, float, Tensor]] = []
        if settings.hidden:
            by_label.append((HIDDEN, settings.hidden, hidden_state_loss(ours.hidden, theirs.hidden)))
        if settings.attention:
            attention_mask = ours.attention[0, :, 0] > -torch.inf  # [labels, positions]
            value = attention_loss(ours.attention, theirs.attention, attention_mask, self.pooling)
            by_label.append((ATTENTION, settings.attention, value))
        return [(name, factor, per_utterance(x, batch.utterance_index, len(batch.ids))) for name, factor, x in by_label]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its losses in the log."""
        return tuple(n for n, on in ((HIDDEN, self.settings.hidden), (ATTENTION, self.settings.attention)) if on)
