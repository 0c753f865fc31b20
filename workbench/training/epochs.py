"""The epochs of a stage: how many steps there are, in how many micro-batches each is computed, and the batches themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader

from workbench.cache.labelled_dataset import LabelledDataset
from workbench.config.sections import Stage
from workbench.core.errors import UserError
from workbench.core.machine.children import end_with_parent
from workbench.core.machine.memory import Peak
from workbench.corpus.batching import StepPlan, plan_steps
from workbench.run.checkpoints import TrainingProgress
from workbench.training.context import RunContext
from workbench.training.step.batch_size import micro_batches_that_fit
from workbench.training.step.batches import Batch, MicroBatches, MicroBatchPlan
from workbench.training.step.losses import StageProgress


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The steps of one epoch."""

    dataset: LabelledDataset  # what it trains on
    steps: Sequence[StepPlan]
    micro_batches: int  # of a step, over all processes
    mine: range  # those of this process


class EpochPlan:
    """Plans a stage's epochs, from its current position on.

    Args:
        context: the run's context.
        number: the stage's number.
        name: the stage's name.
        stage: its settings.
        progress: how far it is; the number of micro-batches is written there.
    """

    def __init__(self, context: RunContext, number: int, name: str, stage: Stage, progress: TrainingProgress) -> None:
        self._context, self._number, self._name, self._stage, self._progress = context, number, name, stage, progress
        self._rank, self._ranks = context.accelerator.process_index, context.accelerator.num_processes
        self._planned: int | None = None  # steps of all epochs

    def total(self, epoch: Epoch) -> int:
        """Steps of the whole stage, given its current epoch."""
        stage = self._stage
        if self._context.streaming:
            assert stage.max_steps is not None  # noqa: S101  checked with the recipe
            return stage.max_steps
        if self._planned is None:
            lengths = [
                len(epoch.steps) if e == self._progress.epoch else len(self._steps(epoch.dataset, e))
                for e in range(stage.epochs)
            ]
            self._planned = sum(lengths)
        return min(self._planned, stage.max_steps or self._planned)

    def plan(self, dataset: LabelledDataset, attempt: Callable[[StepPlan, int], Peak | None]) -> Epoch:
        """The next epoch.

        Args:
            dataset: what it trains on.
            attempt: computes one of that many micro-batches of a step, and returns the memory it took.
        """
        context, progress = self._context, self._progress
        steps = self._steps(dataset, progress.epoch)
        if context.streaming and self._ranks > 1:
            steps = steps[: int(context.processes.all_reduce_min(len(steps)))]  # processes step together
        least = 1 if context.streaming else self._ranks
        if not progress.micro_batches:
            if self._stage.micro_batches is not None:
                progress.micro_batches = -(-self._stage.micro_batches // least) * least
            else:
                progress.micro_batches = micro_batches_that_fit(
                    steps, context.recipe.trailing_silence.train_max, least, context.accelerator.device,
                    attempt, context.processes.worst_of, self._name,
                )  # fmt: skip
        count = -(-progress.micro_batches // least) * least  # resumed on another number of processes
        mine = range(count) if context.streaming else range(self._rank, count, self._ranks)
        return Epoch(dataset=dataset, steps=steps, micro_batches=count, mine=mine)

    def batches(self, epoch: Epoch) -> Iterator[list[Batch]]:
        """This process's micro-batches of each step, collated ahead by workers and, for a GPU, pinned."""
        context = self._context
        recipe, on_gpu = context.recipe, context.accelerator.device.type == "cuda"
        workers = recipe.loader_workers if recipe.loader_workers is not None else 4 * on_gpu
        plan = MicroBatchPlan(
            steps=epoch.steps,
            mine=epoch.mine,
            micro_batches=epoch.micro_batches,
            seed=(recipe.seed, self._number, self._progress.epoch),
            teacher_states=bool(self._stage.encoder_matching),
            clean=bool(self._stage.consistency),
            pooled=context.family.pooling(context.model) > 1,
        )
        data = MicroBatches(epoch.dataset, context.family, recipe, plan)
        loader: DataLoader[Batch] = DataLoader(
            data, batch_size=None, num_workers=workers, pin_memory=on_gpu, prefetch_factor=4 if workers else None,
            worker_init_fn=end_with_parent,
        )  # fmt: skip
        step: list[Batch] = []
        for batch in _read(loader):
            step.append(batch)
            if len(step) == len(epoch.mine):
                yield step
                step = []

    def share_done(self, total: int) -> float:
        """Share of the stage's steps that are done."""
        return min(1.0, self._progress.stage_step / max(total - 1, 1))

    def stage_progress(self, total: int) -> StageProgress:
        """Where in the stage the next step is."""
        progress = self._progress
        epoch = progress.stream_pass if self._context.streaming else progress.epoch
        return StageProgress(self.share_done(total), epoch, self._stage.epochs)

    def learning_rate(self, total: int) -> float:
        """The optimizer's learning rate in the next step."""
        return self._stage.learning_rate * schedule(self._progress.stage_step, total, self._stage.warmup_ratio)

    def enough(self) -> bool:
        """Whether the stage has reached its maximum number of steps."""
        return self._stage.max_steps is not None and self._progress.stage_step >= self._stage.max_steps

    def _steps(self, dataset: LabelledDataset, epoch: int) -> list[StepPlan]:
        recipe = self._context.recipe
        # in a stream every process has clips of its own, and a share of the step
        share = self._ranks if self._context.streaming else 1
        seed = (recipe.seed, self._number, epoch, *([self._rank] if share > 1 else []))
        return plan_steps(
            dataset.utterances, self._stage.batch_seconds / share, recipe.trailing_silence.train_min, seed
        )


def _read(loader: Iterable[Batch]) -> Iterator[Batch]:
    try:
        yield from loader
    except UserError as error:  # an error from a worker holds its traceback as text, and then the message
        raise UserError(str(error).strip().splitlines()[-1].rpartition("UserError: ")[2]) from None


def schedule(step: int, total: int, warmup_ratio: float) -> float:
    """Factor of the learning rate: linear up during warm-up, then linear down to zero."""
    warmup = max(1, round(warmup_ratio * total))
    return (step + 1) / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))
