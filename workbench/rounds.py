"""The rounds of a stage: how many steps there are, in how many micro-batches each is computed, and the batches themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from workbench.checkpoints import Position
from workbench.children import end_with_parent
from workbench.corpus.batching import StepPlan, plan_steps
from workbench.data import Batch, MicroBatches
from workbench.errors import UserError
from workbench.families.pooling import pool_after
from workbench.memory import Peak
from workbench.recipe_sections import Stage
from workbench.sizing import parts_that_fit
from workbench.step import Moment
from workbench.windows import Window

if TYPE_CHECKING:
    from workbench.train import Distillation


class Rounds:
    """A stage's way through its windows, from a position on.

    Args:
        run: whose stage it is.
        number: of the stage.
        name: of the stage.
        stage: its settings.
        position: how far it is; the number of micro-batches is kept there.
    """

    def __init__(self, run: Distillation, number: int, name: str, stage: Stage, position: Position) -> None:
        self.run, self.number, self.name, self.stage, self.position = run, number, name, stage, position
        self.rank, self.ranks = run.accelerator.process_index, run.accelerator.num_processes
        self.planned: int | None = None  # steps of all rounds

    def total(self, window: Window, plan: Sequence[StepPlan]) -> int:
        """Steps of the whole stage."""
        stage = self.stage
        if self.run.recipe.stream is not None:
            assert stage.steps is not None  # noqa: S101  checked with the recipe
            return stage.steps
        if self.planned is None:
            lengths = [
                len(plan) if e == self.position.round else len(self._one(window, e)) for e in range(stage.epochs)
            ]
            self.planned = sum(lengths)
        return min(self.planned, stage.steps or self.planned)

    def plan(
        self, window: Window, attempt: Callable[[StepPlan, int], Peak | None]
    ) -> tuple[list[StepPlan], int, range]:
        """This round's steps, in how many micro-batches each is computed, and which of them are this process's.

        Args:
            window: what the round trains on.
            attempt: computes one of so many micro-batches of a step, and says what memory that took.
        """
        plan = self._one(window, self.position.round)
        streaming = self.run.recipe.stream is not None
        if streaming and self.ranks > 1:
            plan = plan[: int(self.run.processes.smallest(len(plan)))]  # processes step together
        least = 1 if streaming else self.ranks
        if not self.position.parts:
            if self.stage.micro_batches is not None:
                self.position.parts = -(-self.stage.micro_batches // least) * least
            else:
                self.position.parts = parts_that_fit(
                    plan, self.run.recipe.margin.longest, least, self.run.accelerator.device,
                    attempt, self.run.processes.worst_of, self.name,
                )  # fmt: skip
        of = -(-self.position.parts // least) * least  # resumed on another number of processes
        return plan, of, range(of) if streaming else range(self.rank, of, self.ranks)

    def batches(self, window: Window, plan: Sequence[StepPlan], parts: range, of: int) -> Iterator[list[Batch]]:
        """Micro-batches of each step, collated ahead by workers and, for a GPU, pinned."""
        recipe, device = self.run.recipe, self.run.accelerator.device
        on_gpu = device.type == "cuda"
        workers = recipe.loader_workers if recipe.loader_workers is not None else 4 * on_gpu
        data = MicroBatches(
            window.utterances, window.keys, window.caches, self.run.family, recipe, plan, parts, of,
            (recipe.seed, self.number, self.position.round), bool(self.stage.encoder_matching), window.encoded,
            pool_after(self.run.model.config) > 0,
        )  # fmt: skip
        loader: Any = DataLoader(
            data, batch_size=None, num_workers=workers, pin_memory=on_gpu, prefetch_factor=4 if workers else None,
            worker_init_fn=end_with_parent,
        )  # fmt: skip
        together: list[Batch] = []
        for batch in _read(loader):
            together.append(batch)
            if len(together) == len(parts):
                yield together
                together = []

    def progress(self, total: int) -> float:
        """Share of the stage's steps that are done."""
        return min(1.0, self.position.stage_step / max(total - 1, 1))

    def moment(self, total: int) -> Moment:
        """Where in the stage the next step is."""
        position = self.position
        epoch = position.round if self.run.recipe.stream is None else position.stream_pass
        return Moment(self.progress(total), epoch, self.stage.epochs)

    def learning_rate(self, total: int) -> float:
        """The optimizer's learning rate in the next step."""
        return self.stage.learning_rate * schedule(self.position.stage_step, total, self.stage.warmup_share)

    def enough(self) -> bool:
        """Whether the stage has had the steps that it is given at most."""
        return self.stage.steps is not None and self.position.stage_step >= self.stage.steps

    def _one(self, window: Window, round_number: int) -> list[StepPlan]:
        recipe = self.run.recipe
        # in a stream every process has clips of its own, and a share of the step
        share = 1 if recipe.stream is None else self.ranks
        seed = (recipe.seed, self.number, round_number, *([self.rank] if share > 1 else []))
        return plan_steps(window.utterances, self.stage.batch_seconds / share, recipe.margin.shortest, seed)


def _read(loader: Any) -> Iterator[Batch]:
    try:
        yield from loader
    except UserError as error:  # a worker's holds its traceback, as text, and then the message
        raise UserError(str(error).strip().splitlines()[-1].rpartition("UserError: ")[2]) from None


def schedule(step: int, total: int, warmup_share: float) -> float:
    """Factor of the learning rate: linear up during warm-up, then linear down to zero."""
    warmup = max(1, round(warmup_share * total))
    return (step + 1) / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))
