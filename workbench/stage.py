"""One stage of training: rounds of steps, each step in as many micro-batches as processes and memory ask for."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from workbench import checkpoints
from workbench.allocator import release_freed_memory
from workbench.checkpoints import Position
from workbench.corpus.batching import StepPlan, padding_share
from workbench.data import Batch
from workbench.ema import MovingAverage
from workbench.encoded import encoded_folder
from workbench.errors import UserError
from workbench.evaluate import EncodedClips
from workbench.look_ahead import LearntWeights
from workbench.memory import Peak, peak_of
from workbench.passes import Passes
from workbench.probe import StudentProbe
from workbench.processes import wait_for_all
from workbench.progress import Progress
from workbench.recipe_sections import Stage
from workbench.rounds import Rounds
from workbench.self_teacher import SelfTeacher
from workbench.step import Moment, Objective, StepSize, Student, weight_columns
from workbench.step_figures import StepFigures
from workbench.weighting import TeacherStatistics, Weighting, build_weighting
from workbench.windows import Window

if TYPE_CHECKING:
    from workbench.train import Distillation

log = logging.getLogger("workbench")
STEPS_BETWEEN_RELEASES = 100  # on a CPU, of memory that was freed


class StageLoop:
    """A stage's optimizer, weighting and wrapped student, and the loop over them."""

    def __init__(self, run: Distillation, number: int, name: str, stage: Stage, position: Position) -> None:
        self.run, self.number, self.name, self.stage, self.position = run, number, name, stage, position
        recipe, accelerator = run.recipe, run.accelerator
        self.rounds = Rounds(run, number, name, stage, position)
        student = Student(run.model, run.family, stage)
        self.trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
        folder = encoded_folder(recipe, "evaluated", run.calibration) if run.untrained(name) else None
        self.validation = EncodedClips(
            run.validation_set, run.family, recipe.margin.inference, student.encoder_frozen, folder
        )
        self._fill_validation()
        self.objective: Objective | None = None
        self.itself: SelfTeacher | None = None
        wrapped: Any = torch.compile(student, dynamic=True) if recipe.compile else student
        optimizer: Any = torch.optim.AdamW(
            [p for p in student.parameters() if p.requires_grad],
            lr=stage.learning_rate,
            weight_decay=stage.weight_decay,
            fused=True,
        )
        self.student, self.optimizer = accelerator.prepare(wrapped, optimizer)
        # FSDP puts sharded parameters in the place of the model's own, so whatever keeps references to parameters (moving average,
        # names of the optimizer's moments, self-teacher) has to be built after `prepare`.
        self.average = MovingAverage(run.model, recipe.ema) if recipe.ema else None
        on_policy = run.on_policy.with_settings(stage.on_policy) if run.on_policy and stage.on_policy else None
        self.passes = Passes(accelerator, run.family, student, self.student, recipe.augment, position, on_policy)
        self.inner = getattr(self.optimizer, "optimizer", self.optimizer)
        self.names = {p: n for n, p in run.model.named_parameters() if p.requires_grad}
        if position.stage_step:
            checkpoint = checkpoints.latest(run.folder / "checkpoints")
            assert checkpoint is not None  # noqa: S101  a position inside a stage came from one
            checkpoints.load_optimizer(checkpoint, self.inner, self.names)
            if self.average:
                self.average.load_state_dict(checkpoints.load_tensors(checkpoint, "average"))

    def __call__(self) -> None:
        """Train to the stage's end."""
        with ExitStack() as shown:  # the bar, which is begun once the number of steps is known
            self._train(shown)

    def _train(self, shown: ExitStack) -> None:
        position, stage = self.position, self.stage
        last_saved = time.monotonic()
        progress: Progress | None = None
        for window in self.run.windows(self.name, stage, position, self._asks_teacher):
            objective = self.objective or self._begin(window)
            plan, of, parts = self._plan(window)
            total = self.rounds.total(window, plan)
            if progress is None:
                progress = shown.enter_context(Progress(self.name, total, self.run.main, position.stage_step))
                log.info(
                    "stage %s: %d steps in %d micro-batch(es) on %s, %s parameters trained, padding %.0f %%",
                    self.name, total, of, self.run.accelerator.device, f"{self.trained:,}",
                    100 * padding_share(window.utterances, plan),
                )  # fmt: skip
            if position.batch == 0:
                self._begin_round(objective, window, plan, parts, of, total)
            for micro_batches in self.rounds.batches(window, plan[position.batch :], parts, of):
                started = time.perf_counter()
                self._step(micro_batches, objective, total)
                position.seconds += time.perf_counter() - started
                position.batch += 1
                position.weighting = objective.weighting.state_dict()
                progress.advance(1, self.run.log.latest)
                if self.rounds.enough():
                    break
                # the last step of a round is saved below, after validation
                due = self.run.processes.together(
                    time.monotonic() - last_saved > 60 * self.run.recipe.checkpoint_minutes
                )
                if due and position.batch < len(plan):
                    self._save()
                    last_saved = time.monotonic()
            self._release()
            position.round, position.batch = position.round + 1, 0
            position.stream_window += 1  # of no meaning without a stream
            done = self.rounds.enough() or (self.run.recipe.stream is None and position.round == stage.epochs)
            if stage.decoding and (position.round % self.run.recipe.validate_every == 0 or done):
                teaching = self.itself if position.itself else None
                self.run.validate(self.name, position, self.average, self.validation, teaching)
            if done:
                break
            self._save()
            last_saved = time.monotonic()
        if not position.stage_step:
            raise UserError(f"corpus {self.run.recipe.corpus!r}: its stream holds no clip that could be used")
        shown.close()
        weighting = self.objective.weighting if self.objective is not None else None
        if isinstance(weighting, LearntWeights) and not weighting.weights:
            log.warning(  # of a stream, whose length was not known before
                "stages.%s.weighting: no weights were learnt, because the stage ended before epoch %d of the stream; "
                "set first: 0, or train for more steps", self.name, weighting.first,
            )  # fmt: skip
        ended = self.run.recipe.stream is not None and not self.rounds.enough()
        if ended and stage.decoding and position.round % self.run.recipe.validate_every:
            # the stream ended before the stage's steps did, which its last window could not know
            self.run.validate(self.name, position, self.average, self.validation)
        if self.average and not stage.decoding:
            self.average.fill()  # not validated, so nothing else takes the average over
        position.stage, position.stage_step, position.parts = self.number + 1, 0, 0
        position.round = position.stream_pass = position.stream_window = 0
        position.itself = False
        position.teacher_losses = []
        self._save()
        self.run.accelerator.free_memory()

    def _begin(self, window: Window) -> Objective:
        """The stage's losses and weighting, as they were when it was interrupted."""
        position, run = self.position, self.run
        weighting = self._weighting(window)
        sharded = any(hasattr(p, "full_tensor") for p in run.model.parameters())
        if sharded and (isinstance(weighting, LearntWeights) or self.passes.on_policy):
            raise UserError(
                f"stages.{self.name}: a sharded student cannot be looked ahead with, nor sampled from; use DDP instead of FSDP"
            )
        if position.stage_step:
            weighting.load_state_dict(position.weighting)
        if weighting.self_teacher is not None:
            self.itself = self.passes.itself = SelfTeacher(run.model, run.family, weighting.self_teacher)
            if position.stage_step:
                checkpoint = checkpoints.latest(run.folder / "checkpoints")
                assert checkpoint is not None  # noqa: S101  a position inside a stage came from one
                self.itself.load_state_dict(checkpoints.load_tensors(checkpoint, "itself"))
        if isinstance(weighting, LearntWeights):
            self._fill_validation(singly=True)
        self.objective = Objective(self.stage, run.recipe.targets.temperature, weighting, run.shares)
        return self.objective

    def _fill_validation(self, singly: bool = False) -> None:
        """Have the frozen encoder's states of the validation clips on disk before any process asks for them."""
        if (store := self.validation.store) is not None:
            if self.run.main:
                self.validation.fill(self.run.model, singly)
            wait_for_all()
            store.reload()

    def _weighting(self, window: Window) -> Weighting:
        statistics = TeacherStatistics(self._statistics(window), self.run.uncertainty)
        return build_weighting(self.stage.weighting, statistics, self.run.recipe.seed)

    def _asks_teacher(self) -> bool:
        """Whether the next window of a stream needs the teacher's word."""
        if self.objective is None or self.stage.steps is None:
            return True
        return not self.objective.weighting.teaches_itself(self.rounds.progress(self.stage.steps))

    def _plan(self, window: Window) -> tuple[list[StepPlan], int, range]:
        return self.rounds.plan(window, partial(self._try, window))

    def _begin_round(
        self, objective: Objective, window: Window, plan: list[StepPlan], parts: range, of: int, total: int
    ) -> None:
        """What happens between epochs: the self of the last one is kept, a weighting looks ahead."""
        if self.itself is not None and self.itself.plan.kind == "previous_epoch":
            self.itself.take()
        moment, learning_rate = self.rounds.moment(total), self.rounds.learning_rate(total)
        if not objective.weighting.looks_ahead(moment.epoch, learning_rate):
            return
        started = time.perf_counter()
        batches = (batch for step in self.rounds.batches(window, plan, parts, of) for batch in step)
        probe = StudentProbe(
            self.run.model,
            self.run.family,
            batches,
            self.passes.audio,
            self.validation,
            objective,
            moment,
            learning_rate,
            self.run.processes.gathered,
        )
        objective.weighting.look_ahead(probe)
        spent = time.perf_counter() - started
        self.position.seconds += spent
        self.position.look_ahead_seconds += spent

    def _statistics(self, window: Window) -> tuple[float, ...]:
        """The teacher's losses that a weighting takes its threshold from: of the corpus, or of a stream's first window."""
        if self.run.recipe.stream is None:
            return window.teacher_losses()
        if not self.position.teacher_losses:
            self.position.teacher_losses = list(window.teacher_losses())
        return tuple(self.position.teacher_losses)

    def _step(self, micro_batches: list[Batch], objective: Objective, total: int) -> None:
        """One optimizer step."""
        accelerator, stage, position = self.run.accelerator, self.stage, self.position
        for group in self.inner.param_groups:
            group["lr"] = self.rounds.learning_rate(total)
        size = self._size(micro_batches)
        moment = self.rounds.moment(total)
        teaching = self.itself is not None and objective.weighting.teaches_itself(moment.progress)
        if teaching and not position.itself:
            position.itself = True
            if self.itself is not None and self.itself.plan.kind == "snapshot":
                self.itself.take()
        figures = StepFigures(objective.weighting.logged, accelerator.device)
        rows: list[tuple[list[str], torch.Tensor]] = []
        for i, cpu_batch in enumerate(micro_batches):
            batch = cpu_batch.to(accelerator.device)
            if i < len(micro_batches) - 1:
                with accelerator.no_sync(self.student):
                    losses = self.passes(batch, objective, moment, size, teaching)
            else:
                losses = self.passes(batch, objective, moment, size, teaching)
            if batch.real:
                figures.add(losses)
                if not losses.on_policy:
                    rows.append((batch.ids, weight_columns(losses, batch)))
        parameters = [p for group in self.inner.param_groups for p in group["params"]]
        norm = accelerator.clip_grad_norm_(parameters, stage.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(position.stage_step)
        if self.itself:
            self.itself.stepped(position.stage_step)
        objective.weighting.stepped(self.run.processes.summed)
        position.stage_step += 1
        position.step += 1
        if position.stage_step % STEPS_BETWEEN_RELEASES == 0:
            self._release()
        means = figures.means(self.run.processes.summed)
        if stage.on_policy is None:
            means.pop("on_policy")
        scalars = {"gradient_norm": checkpoints.whole(norm) if hasattr(norm, "full_tensor") else norm,
                   "learning_rate": self.inner.param_groups[0]["lr"], **means}  # fmt: skip
        self.run.log.step(position.step, self.name, scalars, rows)

    def _release(self) -> None:
        if self.run.accelerator.device.type == "cpu":
            release_freed_memory()

    def _size(self, micro_batches: Sequence[Batch]) -> StepSize:
        """Utterances and tokens of the whole step, over all processes."""
        real = [batch for batch in micro_batches if batch.real]
        counts = [sum(len(b.ids) for b in real), sum(int(b.label_counts.sum()) for b in real)]
        utterances, tokens = self.run.processes.summed(torch.tensor(counts, dtype=torch.float32)).tolist()
        return StepSize(utterances, tokens)

    def _try(self, window: Window, worst: StepPlan, parts: int) -> Peak | None:
        """Forward and backward of one micro-batch of the worst step, and its memory; leaves no trace."""
        rank = self.run.accelerator.process_index
        batch = next(self.rounds.batches(window, [worst], range(rank % parts, rank % parts + 1), parts))[0]
        objective = replace(self.objective or self._begin(window), weighting=self._weighting(window))
        size = StepSize(float(len(batch.ids)), float(batch.label_counts.sum()))

        def work() -> None:
            self.passes(batch.to(self.run.accelerator.device), objective, Moment(0.0), size)

        try:
            return peak_of(work, self.run.accelerator.device)
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def _save(self) -> None:
        run = self.run
        run.log.flush(self.position.step)
        tensors = {
            "model": checkpoints.model_tensors(run.model),
            "optimizer": checkpoints.optimizer_tensors(self.inner, self.names),
        }
        if self.average:
            tensors["average"] = {k: checkpoints.whole(v) for k, v in self.average.state_dict().items()}
        if self.itself:
            tensors["itself"] = {k: checkpoints.whole(v) for k, v in self.itself.state_dict().items()}
        if run.main:
            checkpoints.save(run.folder / "checkpoints", self.position, tensors, run.recipe.keep_checkpoints)
        wait_for_all()
