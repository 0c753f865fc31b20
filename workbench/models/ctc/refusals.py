"""What a recipe may not ask of a student with a CTC head: it needs a decoder, or is not supported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.core.errors import UserError

if TYPE_CHECKING:
    from workbench.config.recipe import Recipe

NEED_A_DECODER = ("on_policy", "decoder_matching", "teacher_adapter", "mixup")  # keys of a stage


def check_recipe(recipe: Recipe, reads_waves: bool, early_by_hook: bool) -> None:
    """Raise UserError for the first setting that such a student cannot be trained with.

    Args:
        recipe: the run's recipe.
        reads_waves: whether the student reads waves, not mels.
        early_by_hook: whether the states of an earlier layer are taken by a hook.
    """
    student = recipe.student
    for key in ("decoder_layers", "vocabulary"):
        if (value := getattr(student, key)) != "all":
            raise UserError(f"student.{key} is {value}; a student with a CTC head has no decoder, leave it out")
    for key in ("pool_after", "encoder_low_rank_variance"):
        if getattr(student, key) is not None:
            raise UserError(f"student.{key} is not supported for a student with a CTC head; leave it out")
    if reads_waves and (recipe.augment.frequency_masks or recipe.augment.time_masks):
        raise UserError(
            "augment: the student reads waves, not mels, which frequency_masks and time_masks blank; leave them out, or add noise"
        )
    for name, stage in recipe.stages.items():
        for key in NEED_A_DECODER:
            if getattr(stage, key) is not None:
                raise UserError(
                    f"stages.{name}.{key} needs a decoder, which a student with a CTC head has not; leave it out"
                )
        if stage.intermediate_ctc is not None and early_by_hook and recipe.compile:
            raise UserError(
                f"stages.{name}.intermediate_ctc cannot be compiled for this student, which is not a Whisper's encoder; set compile: false, or leave it out"
            )
        if stage.weighting.get("self_teacher") == "intermediate":
            raise UserError(
                f"stages.{name}.weighting: self_teacher intermediate teaches an earlier decoder layer, which a student with a CTC head "
                "has not; use ema, snapshot or previous_epoch"
            )
