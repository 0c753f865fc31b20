"""What the processes of a distributed run agree on; with one process each answer is its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import torch
from torch import Tensor

from workbench.core.errors import UserError
from workbench.core.locks import output_lock
from workbench.core.machine.memory import Peak

if TYPE_CHECKING:
    from accelerate import Accelerator

FoundT = TypeVar("FoundT")
LONGEST_WAIT = timedelta(days=7)  # for one process's work, such as validating, or for another run that fills a cache
# a gloo group with that timeout; other collectives keep theirs, which detects a process that hangs
_group: list[torch.distributed.ProcessGroup] = []


class ProcessState(Protocol):
    """What is read of Accelerate's PartialState."""

    num_processes: int
    process_index: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        """Whether this is the first of the processes."""
        ...


def start_processes() -> ProcessState:
    """Accelerate's state of this run's processes, which all of them must request before the first one waits."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    state = cast("ProcessState", PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")))
    if state.num_processes > 1 and not _group:
        _group.append(torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT))
    return state


def wait_for_all() -> None:
    """Wait until every process of the run is here, however long one of them takes."""
    if _group:
        torch.distributed.barrier(_group[0])


@contextlib.contextmanager
def distributed_output_lock(output: Path, wait: bool = False) -> Iterator[None]:
    """`output_lock` for a run of several processes: the main one takes the lock, and all raise its UserError."""
    state = start_processes()
    with contextlib.ExitStack() as stack:
        problem: list[str | None] = [None]
        if state.is_main_process:
            try:
                stack.enter_context(output_lock(output, wait))
            except UserError as error:
                problem = [str(error)]
        if _group:
            torch.distributed.broadcast_object_list(problem, 0, _group[0])
        if problem[0] is not None:
            raise UserError(problem[0])
        yield


class HasParameters(Protocol):
    """An nn.Module, or a protocol that gives types only to the parts of one that are read."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """All of its parameters."""
        ...


def is_sharded(module: HasParameters) -> bool:
    """Whether FSDP has replaced a module's parameters with shards."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


class Processes:
    """A run's processes. Every method must be called by all of them."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.count: int = accelerator.num_processes
        self.is_main: bool = accelerator.is_main_process

    def gather_dict(self, found: dict[str, FoundT]) -> dict[str, FoundT]:
        """The entries of all processes' dictionaries."""
        if self.count == 1:
            return found
        from accelerate.utils import gather_object

        wait_for_all()  # they may not get here at the same time
        return {key: value for part in gather_object([found]) for key, value in part.items()}

    def broadcast(self, wish: bool) -> bool:
        """The main process's answer, for a decision that must be the same in all processes."""
        if self.count == 1:
            return wish
        return bool(self.all_reduce_sum(torch.tensor([float(wish and self.is_main)]))[0])

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.count == 1:
            return values
        total: Tensor = self.accelerator.reduce(values.to(self.accelerator.device), reduction="sum")
        return total

    def all_reduce_min(self, value: float) -> float:
        """Smallest of the processes' values."""
        if self.count == 1:
            return value
        mine = torch.tensor([float(value)], device=self.accelerator.device)
        return float(self.accelerator.gather(mine).min())

    def worst_of(self, peak: Peak | None) -> tuple[bool, float]:
        """Whether any process ran out of memory, and the largest share of the free memory that one took."""
        failed, share = (peak.failed, peak.used / max(peak.free, 1)) if peak else (False, 0.0)
        return self.all_reduce_min(-float(failed)) < 0, -self.all_reduce_min(-share)
