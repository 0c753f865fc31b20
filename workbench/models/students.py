"""What students of every family have in common: which layers they keep, and how they are saved."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from workbench.core.atomic import atomic_folder
from workbench.core.disk import disk_errors
from workbench.core.errors import UserError
from workbench.core.files import write_json
from workbench.core.ownership import write_record
from workbench.models.protocol import Family


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
        problem = f"has no layer {bad[0]}" if bad else "has each layer once, and at least one must be kept"
        raise UserError(
            f"student.{field} is {layers}; the teacher {problem}; expected numbers from 0 to {available - 1}, each once"
        )
    return sorted(layers)


def parameters(model: torch.nn.Module) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


def save_student(model: nn.Module, family: Family, folder: Path, margin: float) -> None:
    """Write a student as a checkpoint of its family with its tokenizer; `workbench.json` says how much silence it expects."""
    with disk_errors(folder), atomic_folder(folder) as temporary:
        family.save(model, temporary)
        for path in family.token_and_feature_files():
            # what describes tokens and features is the teacher's; weights and configuration are the student's own
            if not (temporary / path.name).exists():
                shutil.copyfile(path, temporary / path.name)
        settings = {"schema": 1, "length": "true", "margin_seconds": margin}
        write_json(temporary / "workbench.json", settings)
        write_record(temporary)
