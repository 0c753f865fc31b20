"""Checkpoints of a run: safetensors and JSON, written whole or not at all, so that a killed run resumes.

All randomness of training is derived from (seed, stage, epoch, step), so weights, optimizer and counters are the whole
state: nothing of any random generator needs keeping. The SHA-256 of every file lies beside them, and is compared before a run resumes: a
flipped bit would silently train another student.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.atomic import atomic_folder
from workbench.core.disk import disk_errors
from workbench.core.errors import UserError
from workbench.core.files import read_json, write_json
from workbench.core.hashing import check_hashes, sha256

log = logging.getLogger("workbench")
STATE = "state.json"
EARLIER_STATE = "position.json"
HASHES = "sha256.json"  # of the checkpoint's files
STEPS = "step-" + 8 * "[0-9]"  # checkpoints, and not what somebody copied beside them


@dataclass
class TrainingProgress:
    """How far a run has come. Written by the stage that trains, and by a stream at the end of a pass."""

    stage: int = 0
    epoch: int = 0  # of the stage; with a stream, each window counts as one
    stream_pass: int = 0  # times that the stream has ended, in this stage
    stream_window: int = 0  # windows done of this pass
    batch: int = 0  # step of the epoch, the next one to do
    stage_step: int = 0  # optimizer steps done in the stage
    step: int = 0  # optimizer steps done in the run
    micro_batches: int = 0  # of a step in this stage; 0: not yet decided
    self_teaching: bool = False  # whether the student has begun to teach itself
    teacher_losses: list[float] = field(default_factory=list)  # of a stream's first window: the weighting's statistics

    def end_stage(self) -> None:
        """Move to the start of the next stage."""
        begun = TrainingProgress(stage=self.stage + 1, step=self.step)
        for field_ in fields(self):
            setattr(self, field_.name, getattr(begun, field_.name))


@dataclass
class Timers:
    """Seconds that a run has spent, each counted by `timing` where it is spent."""

    training: float = 0.0
    teacher: float = 0.0  # the teachers' passes
    encoder: float = 0.0  # a frozen encoder's pass, where its states were not there yet
    look_ahead: float = 0.0  # of training, spent by a weighting on looking ahead
    sampling: float = 0.0  # of training, spent on sampling from the student and on the teacher's pass over the samples

    @contextmanager
    def timing(self, *names: str) -> Iterator[None]:
        """Add the time of a block to some of the timers."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            for name in names:
                setattr(self, name, getattr(self, name) + spent)


@dataclass
class TrainingState:
    """All of a run's state that is not a tensor, as a checkpoint holds it."""

    progress: TrainingProgress = field(default_factory=TrainingProgress)
    timers: Timers = field(default_factory=Timers)
    best: dict[str, float] | None = None  # validation scores of the best student so far
    weighting: dict[str, Any] = field(default_factory=dict)  # the weighting's `state_dict`


def save(
    folder: Path,
    state: TrainingState,
    tensors: Mapping[str, Mapping[str, Tensor]],
    keep: int = 1,
) -> None:
    """Write `folder/step-N` and remove all but the newest `keep`.

    Args:
        folder: where the checkpoints are.
        state: the run's state.
        tensors: tensors by name of their file: `model`, `optimizer`, and perhaps `average`, `itself` (the self-teacher) and `adapter` (the teacher's).
        keep: how many to keep.

    Raises:
        UserError: the disk is full; the checkpoints that were there stay.
    """
    from safetensors.torch import save_file

    path = folder / f"step-{state.progress.step:08d}"
    with disk_errors(path), atomic_folder(path) as temporary:
        for name, content in tensors.items():
            save_file(dict(content), temporary / f"{name}.safetensors")
        write_json(temporary / STATE, asdict(state))
        write_json(temporary / HASHES, {path.name: sha256(path) for path in sorted(temporary.iterdir())})
    for old in sorted(folder.glob(STEPS))[:-keep]:
        shutil.rmtree(old)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or None."""
    found = sorted(folder.glob(STEPS))
    return found[-1] if found else None


def read_state(checkpoint: Path) -> TrainingState:
    """Read a run's state; raises UserError if any file of the checkpoint is damaged.

    One of an earlier version, which wrote no hashes, is taken as it is, and a warning says so.
    """
    if (checkpoint / HASHES).is_file():
        remedy = f"delete {checkpoint} to resume without it"
        check_hashes(checkpoint, read_json(checkpoint / HASHES, "a checkpoint's hashes"), HASHES, remedy)
    else:
        log.warning(
            "%s: has no %s, because an earlier version wrote it; it is used without a check", checkpoint, HASHES
        )
    if (checkpoint / EARLIER_STATE).is_file():
        return _earlier_state(read_json(checkpoint / EARLIER_STATE, "a checkpoint's state"))
    content = read_json(checkpoint / STATE, "a checkpoint's state")
    return TrainingState(
        TrainingProgress(**content["progress"]), Timers(**content["timers"]), content["best"], content["weighting"]
    )


def _earlier_state(content: dict[str, Any]) -> TrainingState:
    """From `position.json`, which earlier versions wrote: one record of all."""
    names = {"round": "epoch", "parts": "micro_batches", "itself": "self_teaching"}
    timers = {"seconds": "training"} | {f"{name}_seconds": name for name in ("teacher", "encoder", "look_ahead", "sampling")}  # fmt: skip
    state = TrainingState(best=content.pop("best", None), weighting=content.pop("weighting", {}))
    for key, value in content.items():
        record, name = (state.timers, timers[key]) if key in timers else (state.progress, names.get(key, key))
        setattr(record, name, value)
    return state


def load_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """Read one file of a checkpoint; raises UserError if it is damaged or missing."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = checkpoint / f"{name}.safetensors"
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: cannot be loaded ({str(error).splitlines()[0]}); delete {checkpoint} to resume without it"
        ) from None
    return tensors


def load_model(checkpoint: Path, model: torch.nn.Module) -> None:
    """Restore the student's weights in place; raises UserError if the checkpoint is damaged or of another student."""
    other = UserError(
        f"{checkpoint}: belongs to another student; delete {checkpoint.parent.parent} or choose another output"
    )
    try:
        missing, unexpected = model.load_state_dict(load_tensors(checkpoint, "model"), strict=False)
    except RuntimeError:  # shapes differ
        raise other from None
    if unexpected or set(missing) - set(_aliases(model)):
        raise other


def model_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """The model's state on the CPU, each shared tensor once, as safetensors requires. All processes must call it."""
    aliases = set(_aliases(model))
    return {k: whole(v) for k, v in model.state_dict().items() if k not in aliases}


def _aliases(model: torch.nn.Module) -> list[str]:
    """Second names of shared parameters, such as a projection tied to the embedding; the first name of each is not among them."""
    first = {name for name, _ in model.named_parameters()}
    return [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in first]


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's moments as `parameter::moment`. All processes must call it."""
    return {
        f"{names[parameter]}::{key}": whole(value)
        for group in optimizer.param_groups
        for parameter in group["params"]
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> None:
    """Restore the moments of a fused optimizer, sharded as its parameters are."""
    restore_moments(load_tensors(checkpoint, "optimizer"), optimizer, names, fused=True)


def restore_moments(
    saved: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], fused: bool
) -> None:
    """Restore what `optimizer_tensors` returned, sharded as the parameters are."""
    parameters = {name: parameter for parameter, name in names.items()}
    for full_name, value in saved.items():
        name, key = full_name.split("::")
        parameter = parameters[name]
        if value.dim():
            optimizer.state[parameter][key] = sharded_like(value, parameter)
        else:  # fused AdamW needs its step counts on the parameter's device, and whole; others need them on the CPU
            optimizer.state[parameter][key] = value.to(parameter.device) if fused else value


def whole(tensor: Tensor) -> Tensor:
    """A tensor, gathered if it is sharded, on the CPU."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach().cpu().contiguous()


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, placed and sharded as a parameter is; one that is sharded already stays as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or isinstance(value, DTensor):
        return value.to(parameter.device)
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
