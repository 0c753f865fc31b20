"""A distillation run on Accelerate: teacher's targets, stages of training, the student's folder."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from workbench import __version__
from workbench.cache.encoder_cache import calibration_clips
from workbench.cache.tail import check_tail, uses_tail_bucket
from workbench.config.recipe import Recipe, load_recipe
from workbench.core.atomic import atomic_folder
from workbench.core.errors import UserError
from workbench.core.files import write_json
from workbench.core.machine.allocator import bound_kernel_cache, keep_freed_memory
from workbench.core.machine.distributed import Processes, distributed_output_lock, wait_for_all
from workbench.core.machine.kernels import choose_cuda_kernels
from workbench.core.ownership import check_output
from workbench.corpus import Utterance, recipe_meta_set, recipe_training_set, scored_clips
from workbench.models import Family
from workbench.models.students import parameters
from workbench.run import checkpoints
from workbench.run.checkpoints import TrainingState
from workbench.run.folder import check_run, delete_run_files, delete_temporary_files
from workbench.run.inputs import FILE as INPUTS
from workbench.run.inputs import changed_recipe, changed_run, inputs_of
from workbench.run.log import RunLog
from workbench.run.preflight import alignable, check_schedules, check_sharding, check_trackers, check_transcripts
from workbench.training.context import RunContext
from workbench.training.datasets import StageDatasets
from workbench.training.oracle.teacher import FOLDER as ORACLE
from workbench.training.oracle.teacher import oracle_reports, with_oracle
from workbench.training.stage import StageTrainer
from workbench.training.student import corpus_vocabulary, initial_student, student_family
from workbench.training.teaching.stage_teachers import prepared_teachers, weighed_teachers
from workbench.training.teaching.teacher_ensemble import TeacherEnsemble
from workbench.training.validation import Validation

log = logging.getLogger("workbench")
EARLY_CLIPS = 16  # clips whose tail is measured before the teacher's whole pass


def distill(recipe: Recipe, restart: bool = False, wait: bool = False) -> Path:
    """Run a recipe to its end, or resume a killed run; returns the student's folder.

    Args:
        recipe: what to do.
        restart: delete what the run folder holds.
        wait: if another process is training it, wait until that has ended.

    Raises:
        UserError: the recipe cannot be run here, or the run folder belongs to another recipe or is in use by another process.
    """
    check_output(recipe.output)
    if not restart and (done := _finished(recipe)) is not None:
        return done  # without locking the folder: several runs of a study may read the same student at once
    with distributed_output_lock(recipe.output, wait):
        return (None if restart else _finished(recipe)) or Trainer(recipe, restart).run()


def _finished(recipe: Recipe) -> Path | None:
    """The student of a finished run, or None if the run is to be started or resumed; raises UserError if it is another recipe's."""
    run = recipe.output
    if (run / "recipe.yaml").is_file():
        if reason := changed_recipe(load_recipe(run / "recipe.yaml"), recipe):
            raise UserError(
                f"{run}: holds a run of another recipe ({reason}; see {run / 'recipe.yaml'}); "
                "add --restart to replace it, or output=FOLDER"
            )
        if (run / "scores.json").is_file():
            _check_inputs(run, changed_run(run, recipe))
            log.info("%s is finished; add --restart to train it again", run)
            delete_temporary_files(run)
            return run / "student"
    return None


def _check_inputs(run: Path, reason: str | None) -> None:
    if reason:
        raise UserError(f"{run}: holds a run on {reason} than now; add --restart to replace it, or output=FOLDER")


class Trainer:
    """A run: opens what it needs, runs the teachers, trains stage by stage, writes the student's folder.

    Args:
        recipe: what to do.
        restart: delete what the run folder holds, once all other checks have passed.

    Raises:
        UserError: the recipe cannot be run here.
    """

    recipe: Recipe
    folder: Path
    accelerator: Accelerator
    processes: Processes
    train_set: list[Utterance]  # empty for a stream
    validation_set: list[Utterance]
    meta_set: list[Utterance]  # what the weighting looks ahead on, if it does
    teachers: TeacherEnsemble
    family: Family  # of the student
    model: nn.Module  # the student
    calibration: Sequence[Utterance]  # clips that the student's encoder was compressed on
    log: RunLog

    def __init__(self, recipe: Recipe, restart: bool = False) -> None:
        """Open everything. In this order: what is cheap to check, the processes, models, and last the folder is written to."""
        self.recipe, self.folder = recipe, recipe.output
        check_run(recipe, restart)
        check_trackers(recipe)
        self._read_corpus()
        self._open_accelerator()
        self._open_models()
        self._open_folder(restart)
        # not before, since the run's inputs are all clips of the corpus
        self.train_set = alignable(self.train_set, self.family, recipe.trailing_silence.train_min)

    def _read_corpus(self) -> None:
        recipe = self.recipe
        self.train_set = []
        if recipe.stream is None:
            self.train_set = recipe_training_set(recipe)
        check_schedules(recipe, self.train_set)
        self.validation_set = scored_clips(recipe.corpus, "validation", recipe.max_clips)
        self.meta_set = recipe_meta_set(recipe)

    def _open_accelerator(self) -> None:
        from accelerate.utils import set_seed

        recipe = self.recipe
        self.accelerator = Accelerator(
            mixed_precision="bf16" if recipe.precision == "bf16" else "no",
            log_with=list(recipe.trackers) or None,
            project_dir=self.folder,
        )
        check_sharding(self.accelerator, recipe)
        if self.accelerator.device.type == "cpu":
            bound_kernel_cache()
            keep_freed_memory()
        choose_cuda_kernels()
        set_seed(recipe.seed)
        self.processes = Processes(self.accelerator)

    def _open_models(self) -> None:
        recipe = self.recipe
        self.teachers = TeacherEnsemble(recipe, self.accelerator)
        self.family = student_family(recipe, self.teachers, [u.text for u in self.train_set])
        self.calibration = calibration_clips(recipe, self.train_set, self.validation_set)
        self.model = initial_student(recipe, self.teachers, self.family, self.calibration)
        check_transcripts([*self.train_set, *self.validation_set, *self.meta_set], self.family)

    def _open_folder(self, restart: bool) -> None:
        recipe = self.recipe
        train = self.train_set if recipe.stream is None else None
        inputs = inputs_of(recipe, train, self.validation_set, self.meta_set)
        # an oracle teacher is made before the first checkpoint, from the same inputs
        begun = checkpoints.latest(self.folder / "checkpoints") is not None or (self.folder / ORACLE).is_dir()
        if not restart and begun:
            _check_inputs(self.folder, changed_run(self.folder, recipe, inputs))
        wait_for_all()  # all have compared before the main process writes
        if self.processes.is_main:
            if restart:
                delete_run_files(self.folder)
            recipe.save(self.folder / "recipe.yaml")
            write_json(self.folder / INPUTS, inputs)
        wait_for_all()  # before any looks for a checkpoint
        track = (lambda values, step: self.accelerator.log(values, step=step)) if recipe.trackers else None
        self.log = RunLog(self.folder, self.accelerator.process_index, track)
        if recipe.trackers:
            # tensorboard takes flat values only
            config = {key: str(value) for key, value in recipe.model_dump(mode="json").items()}
            self.accelerator.init_trackers("distill-workbench", config=config)

    def run(self) -> Path:
        """Targets, then stages, then the student's folder."""
        started = time.perf_counter()
        context, datasets, validation = self.prepare()
        teacher_seconds = time.perf_counter() - started
        self.model.to(self.accelerator.device)
        state = self._resume()
        validation.best = state.best
        for number, (name, stage) in enumerate(self.recipe.stages.items()):
            if number >= state.progress.stage:
                if context.sharded:  # FSDP did it in the stage before, in place, and each stage wraps the student again
                    context = replace(context, model=context.whole_model())
                    datasets.context = validation.context = context
                if stage.oracle_teacher is not None:
                    with state.timers.timing("teacher"):
                        context = with_oracle(context, number, name, datasets.whole, state.progress.stage_step > 0)
                    datasets.context = validation.context = context
                StageTrainer(context, datasets, validation, number, name, stage, state)()
                delete_run_files(self.folder, "encoded") if self.processes.is_main else None
        state.timers.teacher += teacher_seconds
        return self._finish(context, datasets, validation, state)

    def prepare(self, targets: Path | None = None) -> tuple[RunContext, StageDatasets, Validation]:
        """Run the teachers over the corpus, narrow the student's vocabulary if asked for, and free the teachers.

        Args:
            targets: folder of the teachers' targets; where every run finds them by default.

        Returns:
            What the parts of the run share, what stages train on, and what scores the student.
        """
        recipe = self.recipe
        taught = weighed_teachers(recipe, self.teachers, self.validation_set)
        whole, tail, whole_matrix = None, None, torch.empty(0)
        if recipe.stream is None:
            if recipe.targets.temperature > 1 and uses_tail_bucket(recipe):
                # a few clips show it before hours of the teacher's pass; at temperature 1 the tail is small
                few = self.train_set[:: -(-len(self.train_set) // EARLY_CLIPS)]
                check_tail(recipe, self.teachers.labelled(few, targets, "teacher's first targets"), self.processes)
            whole = self.teachers.labelled(self.train_set, targets, "teacher's targets")
            tail = check_tail(recipe, whole, self.processes)
            if recipe.student.vocabulary == "corpus":
                clips = [*self.train_set, *self.validation_set, *self.meta_set]
                known = corpus_vocabulary(self.family, recipe, clips, whole)
                whole_matrix = self.family.prune_vocabulary(self.model, known)
                self.family = self.family.with_vocabulary(known)
            taught = prepared_teachers(recipe, self.teachers, taught, whole, self.processes.gather_dict)
            self.teachers.dismiss()  # not needed again: all their targets are on disk
        context = RunContext(
            recipe=recipe,
            accelerator=self.accelerator,
            processes=self.processes,
            family=self.family,
            model=self.model,
            log=self.log,
            teachers=taught,
        )
        datasets = StageDatasets(context, self.teachers, whole, self.calibration, tail)
        return (
            context,
            datasets,
            Validation(context, self.validation_set, whole_matrix, self.calibration, self.meta_set),
        )

    def _resume(self) -> TrainingState:
        checkpoint = checkpoints.latest(self.folder / "checkpoints")
        if checkpoint is None:
            self.log.truncate(0)
            return TrainingState()
        state = checkpoints.read_state(checkpoint)
        checkpoints.load_model(checkpoint, self.model)
        self.log.truncate(state.progress.step)
        log.info("resuming %s at step %d", self.folder, state.progress.step)
        return state

    def _finish(
        self, context: RunContext, datasets: StageDatasets, validation: Validation, state: TrainingState
    ) -> Path:
        student = self.folder / "student"
        # only the main process has the scores, and either all processes must gather or none
        unscored = self.processes.broadcast(validation.best is None)
        model = context.whole_model(main_alone=True) if unscored else None
        if self.processes.is_main:
            if model is not None:  # no stage decodes, so none was validated: the last student is the result
                validation.save_student(model)
            with atomic_folder(student) as temporary:
                shutil.copytree(self.folder / "best", temporary, dirs_exist_ok=True)
            self.log.finish()
            write_json(self.folder / "scores.json", self._scores(context, datasets, validation, state))
            delete_temporary_files(self.folder)
        wait_for_all()
        if self.recipe.trackers:
            self.accelerator.end_training()
        return student

    def _scores(
        self, context: RunContext, datasets: StageDatasets, validation: Validation, state: TrainingState
    ) -> dict[str, object]:
        from workbench.core.machine.host import describe_host

        train, timers = self.train_set, state.timers
        rounding = list(self.recipe.stages.values())[-1].quantization
        oracles = [name for name, stage in self.recipe.stages.items() if stage.oracle_teacher is not None]
        by_stage = {
            stage: {"oracle_teacher": 1.0} if stage in oracles else found.by_name(self.teachers.names)
            for stage, found in context.teachers.items()
        }
        return {
            "schema": 1,
            "workbench": __version__,
            "teacher": {"name": self.recipe.teacher, "sha256": self.teachers.hashes[0]},
            "teachers": by_stage[list(by_stage)[-1]],
            **({"stage_teachers": by_stage} if oracles or any(s.teacher for s in self.recipe.stages.values()) else {}),
            **({"oracle_teachers": oracle_reports(self.folder, oracles)} if oracles else {}),
            "student": {
                "parameters": parameters(self.model),
                "vocabulary": len(known) if (known := self.family.vocabulary) else self.family.vocabulary_size,
            },
            "corpus": {
                "name": self.recipe.corpus,
                "more": self.recipe.more_corpora,
                "clips": len(train) or None,  # a stream is not counted
                "seconds": round(sum(u.seconds for u in train), 1) or None,
            },
            "targets": {
                "kind": self.recipe.targets.kind,
                "temperature": self.recipe.targets.temperature,
                "tail_mass": None if datasets.tail is None else round(datasets.tail, 4),
            },
            "validation": validation.best,
            **({"validation_quantization": rounding.model_dump(mode="json")} if rounding is not None else {}),
            "seconds": {
                "teacher_pass": round(timers.teacher, 1),
                "frozen_encoder": round(timers.encoder, 1),
                "training": round(timers.training, 1),
                "look_ahead": round(timers.look_ahead, 1),
                "sampling": round(timers.sampling, 1),
            },
            "steps": state.progress.step,
            "processes": self.accelerator.num_processes,
            "host": describe_host(),
        }
