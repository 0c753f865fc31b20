"""One stage of training: epochs of steps, each step in as many micro-batches as processes and memory require."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from workbench.cache.labelled_dataset import LabelledDataset
from workbench.config.sections import Stage
from workbench.core.errors import UserError
from workbench.core.machine.distributed import wait_for_all
from workbench.core.machine.memory import Peak, peak_of
from workbench.core.progress import Progress
from workbench.corpus.batching import StepPlan, padding_share
from workbench.evaluation.transcribe import EncodedClips
from workbench.losses.criterion import criterion_of
from workbench.run import checkpoints
from workbench.run.checkpoints import TrainingState
from workbench.training.context import RunContext
from workbench.training.datasets import StageDatasets
from workbench.training.epochs import Epoch, EpochPlan
from workbench.training.forward_backward import ForwardBackward
from workbench.training.in_step import teacher_in_steps
from workbench.training.optimizer_step import OptimizerStep, release_memory
from workbench.training.prepared import AVERAGE, prepare_stage
from workbench.training.quantization import Quantization
from workbench.training.step.batches import Batch
from workbench.training.step.losses import Objective, StageProgress, StepSize
from workbench.training.step.meta_batches import StudentMetaBatches
from workbench.training.step.student_module import StudentModule
from workbench.training.teaching.self_teacher import SelfTeacher
from workbench.training.teaching.teacher_adapter import ADAPTER
from workbench.training.validation import Validation
from workbench.weighting import TeacherStatistics, Weighting, build_weighting

log = logging.getLogger("workbench")
SELF_TEACHER = "itself"  # its file in a checkpoint


class StageTrainer:
    """A stage's optimizer, weighting and wrapped student, and the loop over its epochs.

    Args:
        context: the run's context.
        datasets: what is trained on.
        validation: the run's validation.
        number: the stage's number.
        name: the stage's name.
        stage: its settings.
        state: the run's state, from which the stage resumes.
    """

    number: int
    name: str
    stage: Stage
    state: TrainingState
    epochs: EpochPlan
    quantization: Quantization
    clips: EncodedClips  # of the validation split
    meta_clips: EncodedClips | None  # what the weighting looks ahead on, if it does
    forward_backward: ForwardBackward
    objective: Objective | None  # built with the first dataset, whose statistics a weighting takes
    self_teacher: SelfTeacher | None

    def __init__(
        self,
        context: RunContext,
        datasets: StageDatasets,
        validation: Validation,
        number: int,
        name: str,
        stage: Stage,
        state: TrainingState,
    ) -> None:
        self.context, self.datasets, self.validation = context, datasets, validation
        self.number, self.name, self.stage, self.state = number, name, stage, state
        self.objective, self.self_teacher, self.meta_clips = None, None, None
        stages = list(context.recipe.stages.values())
        if number and stage.quantization != stages[number - 1].quantization and not state.progress.stage_step:
            validation.best = (
                None  # a score of rounded weights and one of weights as they are do not say which student is better
            )
        self.epochs = EpochPlan(context, number, name, stage, state.progress)
        module = StudentModule(context.model, context.family, stage)  # marks what is trained
        self.quantization = Quantization(context.model, context.family, stage.quantization)
        self.clips = validation.clips(name, module.encoder_frozen)
        self._fill(self.clips)
        self._trained = prepare_stage(context, stage, module, self._checkpoint())
        in_steps = teacher_in_steps(context, name, stage, self._checkpoint())
        if in_steps.matching is not None:
            module.layers, module.attention = in_steps.matching.ours, bool(in_steps.matching.settings.attention)
        self.forward_backward = ForwardBackward(
            context.accelerator,
            context.family,
            module,
            self._trained.student,
            context.recipe.augment,
            state.timers,
            in_steps,
        )
        self._step = OptimizerStep(
            context, stage, name, self.epochs, self._trained, self.forward_backward, state.progress, self.quantization
        )

    def _checkpoint(self) -> Path | None:
        """The checkpoint that the stage resumes from, if it does."""
        if not self.state.progress.stage_step:
            return None
        checkpoint = checkpoints.latest(self.context.folder / "checkpoints")
        assert checkpoint is not None  # noqa: S101  progress inside a stage came from one
        return checkpoint

    def __call__(self) -> None:
        """Train to the stage's end."""
        with ExitStack() as shown:  # the progress bar, created once the number of steps is known
            self._train(shown)
        self.quantization.close()

    def _train(self, shown: ExitStack) -> None:
        progress, stage = self.state.progress, self.stage
        last_saved = time.monotonic()
        bar: Progress | None = None
        for dataset in self.datasets.epochs(
            self.name, stage, progress, self.state.timers, self._asks_teacher, self.quantization
        ):
            objective = self.objective or self.begin(dataset)
            epoch = self.plan(dataset)
            total = self.epochs.total(epoch)
            if bar is None:
                bar = shown.enter_context(
                    Progress(self.name, total, self.context.processes.is_main, progress.stage_step)
                )
                log.info(
                    "stage %s: %d steps in %d micro-batch(es) on %s, %s parameters trained, padding %.0f %%",
                    self.name, total, epoch.micro_batches, self.context.accelerator.device,
                    f"{sum(p.numel() for p in self._trained.names):,}", 100 * padding_share(dataset.utterances, epoch.steps),
                )  # fmt: skip
            if progress.batch == 0:
                self.begin_epoch(objective, epoch, total)
            for micro_batches in self.epochs.batches(replace(epoch, steps=epoch.steps[progress.batch :])):
                with self.state.timers.timing("training"):
                    self.step(micro_batches, objective, total)
                progress.batch += 1
                bar.advance(1, self.context.log.latest)
                if self.epochs.enough():
                    break
                # the last step of an epoch is saved below, after validation
                due = self.context.processes.broadcast(
                    time.monotonic() - last_saved > 60 * self.context.recipe.checkpoint_minutes
                )
                if due and progress.batch < len(epoch.steps):
                    self.save()
                    last_saved = time.monotonic()
            release_memory(self.context.accelerator.device)
            progress.epoch, progress.batch = progress.epoch + 1, 0
            progress.stream_window += 1  # unused without a stream
            done = self.epochs.enough() or (not self.context.streaming and progress.epoch == stage.epochs)
            if stage.decoder_losses and (progress.epoch % self.context.recipe.validate_every == 0 or done):
                self._validate(self.self_teacher if progress.self_teaching else None)
            if done:
                break
            self.save()
            last_saved = time.monotonic()
        if not progress.stage_step:
            raise UserError(f"corpus {self.context.recipe.corpus!r}: its stream holds no usable clip")
        shown.close()
        if self.objective is not None and (reason := self.objective.weighting.nothing_learnt()):
            log.warning(
                "stages.%s.weighting: %s", self.name, reason
            )  # only for a stream, whose length was not known before
        ended = self.context.streaming and not self.epochs.enough()
        if ended and stage.decoder_losses and progress.epoch % self.context.recipe.validate_every:
            # the stream ended before the stage's steps did, which was not known during its last window
            self._validate()
        if self._trained.average and not stage.decoder_losses:
            self._trained.average.fill()  # without validation nothing else saves the average
        progress.end_stage()
        self.save()
        self.context.accelerator.free_memory()

    def _validate(self, self_teacher: SelfTeacher | None = None) -> None:
        self.validation(
            self.name, self.state.progress.step, self._trained.average, self.clips, self.quantization, self_teacher
        )

    def begin(self, dataset: LabelledDataset) -> Objective:
        """The stage's losses and weighting, restored if it was interrupted."""
        context = self.context
        weighting = self._weighting(dataset)
        if context.sharded and (weighting.meta_learned or self.stage.runs_teacher or self.stage.consistency):
            raise UserError(
                f"stages.{self.name}: a sharded student supports neither look-ahead nor on-policy sampling, decoder_matching, consistency or "
                "teacher_adapter; use DDP instead of FSDP"
            )
        checkpoint = self._checkpoint()
        if checkpoint is not None:
            weighting.load_state_dict(self.state.weighting)
        if weighting.self_teacher is not None:
            self.self_teacher = SelfTeacher(context.model, context.family, weighting.self_teacher)
            self.forward_backward.self_teacher = self.self_teacher
            if checkpoint is not None:
                self.self_teacher.load_state_dict(checkpoints.load_tensors(checkpoint, SELF_TEACHER))
        if weighting.meta_learned:
            self.meta_clips = self.validation.meta_clips(self.name, self.stage.trainable == "decoder")
            self._fill(self.meta_clips, singly=True)
        self.objective = Objective(
            self.stage,
            context.recipe.targets.temperature,
            weighting,
            context.teachers[self.name].weights,
            criterion_of(context.family),
        )
        return self.objective

    def _fill(self, clips: EncodedClips, singly: bool = False) -> None:
        """Write the frozen encoder's states of some clips to disk before any process needs them."""
        if (store := clips.store) is not None:
            if self.context.processes.is_main:
                with self.quantization.applied():
                    clips.fill(self.context.model, singly)
            wait_for_all()
            store.reload()

    def _weighting(self, dataset: LabelledDataset) -> Weighting:
        statistics = TeacherStatistics(self._statistics(dataset), self.context.teachers[self.name].uncertainty)
        return build_weighting(self.stage.weighting, statistics, self.context.recipe.seed)

    def _asks_teacher(self) -> bool:
        """Whether the next window of a stream needs the teacher's targets."""
        if self.objective is None or self.stage.max_steps is None:
            return True
        return not self.objective.weighting.is_self_distilling(self.epochs.share_done(self.stage.max_steps))

    def plan(self, dataset: LabelledDataset) -> Epoch:
        """The next epoch; in the stage's first one the largest step is tried, to see what fits in memory."""
        return self.epochs.plan(dataset, partial(self._try, dataset))

    def begin_epoch(self, objective: Objective, epoch: Epoch, total: int) -> None:
        """Before each epoch: keep a copy of the student if it teaches itself, and update the weights that are learnt by looking ahead."""
        if self.self_teacher is not None and self.self_teacher.plan.kind == "previous_epoch":
            self.self_teacher.copy_from_student()
        progress, learning_rate = self.epochs.stage_progress(total), self.epochs.learning_rate(total)
        if not objective.weighting.should_look_ahead(progress.epoch, learning_rate):
            return
        context = self.context
        assert self.meta_clips is not None  # noqa: S101  `begin` opens them for a weighting that looks ahead
        batches = (batch for step in self.epochs.batches(epoch) for batch in step)
        meta_batches = StudentMetaBatches(
            context.model,
            context.family,
            batches,
            self.forward_backward.audio,
            self.meta_clips,
            objective,
            progress,
            learning_rate,
            context.processes.gather_dict,
        )
        with self.state.timers.timing("training", "look_ahead"), self.quantization.applied():
            objective.weighting.look_ahead(meta_batches)

    def _statistics(self, dataset: LabelledDataset) -> tuple[float, ...]:
        """The teacher's losses that a weighting takes its threshold from: of the corpus, or of a stream's first window."""
        if not self.context.streaming:
            return dataset.teacher_losses()
        progress = self.state.progress
        if not progress.teacher_losses:
            progress.teacher_losses = list(dataset.teacher_losses())
        return tuple(progress.teacher_losses)

    def step(self, micro_batches: list[Batch], objective: Objective, total: int) -> None:
        """One optimizer step, of `total` in the stage."""
        self._step(micro_batches, objective, total)

    def _try(self, dataset: LabelledDataset, worst: StepPlan, count: int) -> Peak | None:
        """Forward and backward of one of `count` micro-batches of the largest step, and its memory; changes no state."""
        rank, device = self.context.accelerator.process_index, self.context.accelerator.device
        mine = range(rank % count, rank % count + 1)
        batch = next(self.epochs.batches(Epoch(dataset=dataset, steps=[worst], micro_batches=count, mine=mine)))[0]
        mixup = self.stage.mixup and self.stage.mixup.model_copy(update={"fraction": 1.0})  # what takes most memory
        stage = self.stage.model_copy(update={"mixup": mixup})
        objective = replace(self.objective or self.begin(dataset), weighting=self._weighting(dataset), stage=stage)
        size = StepSize(float(len(batch.ids)), float(batch.label_counts.sum()))

        def work() -> None:
            with self.quantization.applied():
                self.forward_backward(batch.to(device), objective, StageProgress(0.0), size)

        try:
            return peak_of(work, device)
        finally:
            self._trained.optimizer.zero_grad(set_to_none=True)
            if self.forward_backward.adapter:
                self.forward_backward.adapter.zero_grad()

    def save(self) -> None:
        """Write a checkpoint. All processes must call it."""
        context, state, trained = self.context, self.state, self._trained
        context.log.flush(state.progress.step)
        tensors = {
            "model": checkpoints.model_tensors(context.model),
            "optimizer": checkpoints.optimizer_tensors(trained.torch_optimizer, trained.names),
        }
        adapter = self.forward_backward.adapter
        for name, kept in ((AVERAGE, trained.average), (SELF_TEACHER, self.self_teacher), (ADAPTER, adapter)):
            if kept:
                tensors[name] = {k: checkpoints.whole(v) for k, v in kept.state_dict().items()}
        if self.objective is not None:
            state.weighting = self.objective.weighting.state_dict()
        state.best = self.validation.best
        if context.processes.is_main:
            checkpoints.save(context.folder / "checkpoints", state, tensors, context.recipe.keep_checkpoints)
        wait_for_all()
