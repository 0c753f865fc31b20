"""Build a student from its teacher by keeping some of its layers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.disk import disk_errors
from workbench.errors import UserError
from workbench.families import Family
from workbench.families.low_rank import merged_state, ranks_of, restore, shaped_like
from workbench.files import atomic_folder, write_json
from workbench.ownership import write_record
from workbench.recipe_sections import StudentRecipe

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


def choose_layers(wanted: Sequence[int] | int | str, available: int, field: str) -> list[int]:
    """Numbers of the layers to keep, ascending.

    A count spreads them evenly with the first and the last kept (Distil-Whisper, arXiv 2311.00430, section 4).

    Raises:
        UserError: a number or a count that the teacher does not have, or a repeated number.
    """
    if wanted == "all":
        return list(range(available))
    if isinstance(wanted, int):
        if not 1 <= wanted <= available:
            raise UserError(
                f"student.{field} is {wanted}; the teacher has {available} layers, expected 1 to {available}"
            )
        return [available - 1] if wanted == 1 else [round(i * (available - 1) / (wanted - 1)) for i in range(wanted)]
    layers = [int(i) for i in wanted]
    bad = [i for i in layers if not 0 <= i < available]
    if bad or not layers or len(set(layers)) != len(layers):
        problem = f"has no layer {bad[0]}" if bad else "cannot keep a layer twice, or none"
        raise UserError(
            f"student.{field} is {layers}; the teacher {problem}; expected numbers from 0 to {available - 1}, each once"
        )
    return sorted(layers)


def build_student(teacher: WhisperForConditionalGeneration, recipe: StudentRecipe) -> WhisperForConditionalGeneration:
    """Copy a model, the teacher or another checkpoint, with fewer layers into a valid transformers model, weights included.

    `pool_after` is our interpretation of frame pooling (METHODS.md, 6): the mean of two neighbours.

    Alignment heads that pointed at layers of the teacher are renumbered, and dropped where their layer is gone.
    """
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config: Any = WhisperConfig.from_dict(teacher.config.to_dict())
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
    student.load_state_dict(_renumbered(merged_state(teacher), kept))
    if student.device.type == "meta":
        shaped_like(student, config)
    else:
        restore(student)
    student.generation_config = type(teacher.generation_config).from_dict(teacher.generation_config.to_dict())
    heads = getattr(teacher.generation_config, "alignment_heads", None)
    if heads:
        new = {old: i for i, old in enumerate(kept["decoder"])}
        student.generation_config.alignment_heads = [
            [new[layer], head] for layer, head in heads if layer in new
        ] or None
    # trained in this mode too: dropout would blur the teacher's targets, and its draws could not be resumed
    return student.float().eval()


def check_pair(student: Any, teacher: Any, matched: Sequence[str]) -> None:
    """Raise UserError if a student cannot learn from a teacher: other tokens, other features, or states of other width.

    Args:
        student: configuration of the student.
        teacher: configuration of the teacher.
        matched: names of the stages that match encoder states.
    """
    if student.vocab_size != teacher.vocab_size:
        raise UserError(
            f"student vocabulary {student.vocab_size:,}, teacher {teacher.vocab_size:,}: they use different tokenizers; "
            "label the corpus with the teacher (`workbench label`) and train the student on its text"
        )
    if student.num_mel_bins != teacher.num_mel_bins:
        raise UserError(
            f"student hears {student.num_mel_bins} mel bins, teacher {teacher.num_mel_bins}; "
            "label the corpus with the teacher (`workbench label`) and train the student on its text"
        )
    if matched and student.d_model != teacher.d_model:
        raise UserError(
            f"stages.{matched[0]}.encoder_matching: student width {student.d_model}, teacher {teacher.d_model}; "
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


def parameters(model: torch.nn.Module) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


def save_student(model: Any, family: Family, folder: Path, margin: float) -> None:
    """Write a student as a transformers checkpoint with its tokenizer; `workbench.json` says how much silence it expects."""
    with disk_errors(folder), atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, state_dict=merged_state(model))
        for path in family.folder.iterdir():
            # what describes tokens and features is the teacher's; weights and configuration are the student's own
            if path.suffix in (".json", ".txt") and not (temporary / path.name).exists() and path.name != "source.json":
                shutil.copyfile(path, temporary / path.name)
        settings = {"schema": 1, "length": "true", "margin_seconds": margin}
        write_json(temporary / "workbench.json", settings)
        write_record(temporary)
