"""A Whisper with some of a teacher's layers, and whether it can learn from a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from workbench.config.sections import StudentRecipe
from workbench.core.errors import UserError
from workbench.models.students import choose_layers
from workbench.models.whisper.low_rank import merged_state_dict, ranks_of, rebuild_factors, with_low_rank_layers

if TYPE_CHECKING:
    from transformers import WhisperConfig, WhisperForConditionalGeneration


def build_student(teacher: WhisperForConditionalGeneration, recipe: StudentRecipe) -> WhisperForConditionalGeneration:
    """Copy a model, the teacher or another checkpoint, with fewer layers into a valid transformers model, weights included.

    `pool_after` is our interpretation of frame pooling: the mean of two neighbours.

    Alignment heads that pointed at layers of the teacher are renumbered, and dropped where their layer is gone.
    """
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig.from_dict(teacher.config.to_dict())
    kept = {
        "encoder": choose_layers(recipe.encoder_layers, config.encoder_layers, "encoder_layers"),
        "decoder": choose_layers(recipe.decoder_layers, config.decoder_layers, "decoder_layers"),
    }
    config.encoder_layers, config.decoder_layers = len(kept["encoder"]), len(kept["decoder"])
    config.num_hidden_layers = config.encoder_layers
    if recipe.pool_after is not None:
        if recipe.pool_after > config.encoder_layers:
            raise UserError(
                f"student.pool_after is {recipe.pool_after}; the student has {config.encoder_layers} encoder layers"
            )
        config.pool_after = recipe.pool_after
    if ranks := ranks_of(config):
        config.encoder_ranks = {
            f"{kept['encoder'].index(int(number))}.{rest}": rank
            for name, rank in ranks.items()
            for number, rest in [name.split(".", 1)]
            if int(number) in kept["encoder"]
        }
    student = WhisperForConditionalGeneration(config)
    student.load_state_dict(_renumbered(merged_state_dict(teacher), kept))
    if student.device.type == "meta":
        with_low_rank_layers(student, config)
    else:
        rebuild_factors(student)
    student.generation_config = type(teacher.generation_config).from_dict(teacher.generation_config.to_dict())
    generation: Any = student.generation_config
    heads = getattr(teacher.generation_config, "alignment_heads", None)
    if heads:
        new = {old: i for i, old in enumerate(kept["decoder"])}
        generation.alignment_heads = [[new[layer], head] for layer, head in heads if layer in new] or None
    # trained in this mode too: dropout would blur the teacher's targets, and its draws could not be resumed
    student.float().eval()
    return student


def check_pair(student: WhisperConfig, teacher: WhisperConfig, matched: Sequence[str]) -> None:
    """Raise UserError if a student cannot learn from a teacher: other tokens, other features, or states of other width.

    Args:
        student: configuration of the student.
        teacher: configuration of the teacher.
        matched: recipe keys that compare states of both, such as `stages.encoder.encoder_matching`.
    """
    if student.vocab_size != teacher.vocab_size:
        raise UserError(
            f"student vocabulary {student.vocab_size:,}, teacher {teacher.vocab_size:,}: they use different tokenizers; "
            "label the corpus with the teacher (`workbench label`) and train the student on its text"
        )
    if student.num_mel_bins != teacher.num_mel_bins:
        raise UserError(
            f"student reads {student.num_mel_bins} mel bins, teacher {teacher.num_mel_bins}; "
            "label the corpus with the teacher (`workbench label`) and train the student on its text"
        )
    if matched and student.d_model != teacher.d_model:
        raise UserError(
            f"{matched[0]}: student width {student.d_model}, teacher {teacher.d_model}; "
            "set it to 0, or build the student from the teacher's layers"
        )


def _renumbered(state: dict[str, torch.Tensor], kept: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    out = {}
    for key, value in state.items():
        side = next((s for s in kept if key.startswith(f"model.{s}.layers.")), None)
        if side is None:
            out[key] = value.clone()
            continue
        root, rest = f"model.{side}.layers.", key.removeprefix(f"model.{side}.layers.")
        number, name = rest.split(".", 1)
        if int(number) in kept[side]:
            out[f"{root}{kept[side].index(int(number))}.{name}"] = value.clone()
    return out
