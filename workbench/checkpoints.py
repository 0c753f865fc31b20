"""Checkpoints of a run: safetensors and JSON, written whole or not at all, so that a killed run resumes.

All randomness of training is derived from (seed, stage, epoch, step), so weights, optimizer and counters are the whole
state: nothing of any random generator needs keeping.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.files import atomic_folder, read_json, write_json


@dataclass
class Position:
    """How far a run has come."""

    stage: int = 0
    epoch: int = 0  # of the stage
    batch: int = 0  # of the epoch, the next one to do
    stage_step: int = 0  # optimizer steps done in the stage
    step: int = 0  # optimizer steps done in the run
    seconds: float = 0.0  # training time so far
    best: dict[str, float] | None = None  # validation scores of the best student so far
    weighting: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> None:
    """Write `folder/step-N` and remove older ones."""
    from safetensors.torch import save_file

    with atomic_folder(folder / f"step-{position.step:08d}") as temporary:
        save_file(_untied(model), temporary / "model.safetensors")
        save_file(_flat_optimizer(optimizer), temporary / "optimizer.safetensors")
        write_json(temporary / "position.json", asdict(position))
    for old in sorted(folder.glob("step-*"))[:-1]:
        shutil.rmtree(old)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or None."""
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def read_position(checkpoint: Path) -> Position:
    """Read how far the run had come."""
    return Position(**read_json(checkpoint / "position.json", "a checkpoint's position"))


def load_model(checkpoint: Path, model: torch.nn.Module) -> None:
    """Restore the student's weights in place; raises UserError if the checkpoint is damaged or of another student."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = checkpoint / "model.safetensors"
    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: cannot be loaded ({str(error).splitlines()[0]}); delete {checkpoint} to go on without it"
        ) from None
    if unexpected or [name for name in missing if name != "proj_out.weight"]:
        raise UserError(f"{path}: is of another student; delete {checkpoint.parent.parent} or choose another output")


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Restore the optimizer's moments; the parameter groups keep the settings of the recipe."""
    from safetensors.torch import load_file

    state: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(checkpoint / "optimizer.safetensors").items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _untied(model: torch.nn.Module) -> dict[str, Tensor]:
    """State dict with each shared tensor once, which safetensors asks for; Whisper ties its projection to its embedding."""
    return {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items() if k != "proj_out.weight"}


def _flat_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{key}": value.detach().cpu().contiguous() for i, entry in state.items() for key, value in entry.items()
    }
