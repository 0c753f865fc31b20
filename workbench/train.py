"""The distillation loop, on Accelerate: stages of epochs of steps, validated, checkpointed, resumable."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from workbench import __version__, checkpoints
from workbench.checkpoints import Position
from workbench.corpus import Utterance, open_corpus
from workbench.corpus.batching import padding_share, seconds_batches
from workbench.data import Batch, Clips, Collate, padded_seconds
from workbench.errors import UserError
from workbench.evaluate import Validation, validate
from workbench.families import Family, open_family
from workbench.files import atomic_folder, write_json
from workbench.progress import Progress
from workbench.recipe import Recipe, Stage, load_recipe
from workbench.run_log import RunLog
from workbench.step import Student, step_losses, weight_rows
from workbench.students import build_student, parameters, save_student
from workbench.targets import TargetCache, TargetSettings, compute_targets
from workbench.teachers import fingerprint, resolve_teacher
from workbench.weighting import TeacherStatistics, build_weighting

log = logging.getLogger("workbench")


def distill(recipe: Recipe, restart: bool = False) -> Path:
    """Run a recipe to its end, or go on where a killed run stopped; returns the student's folder.

    Raises:
        UserError: the recipe cannot be carried out here, or the run folder belongs to another recipe.
    """
    run = recipe.output
    if restart:
        shutil.rmtree(run, ignore_errors=True)
    if (run / "recipe.yaml").is_file():
        if not recipe.same_training(load_recipe(run / "recipe.yaml")):
            raise UserError(
                f"{run}: holds a run of another recipe (see {run / 'recipe.yaml'}); add --restart to replace it, or output=FOLDER"
            )
        if (run / "scores.json").is_file():
            log.info("%s is finished; add --restart to train it anew", run)
            return run / "student"
    return _Distillation(recipe).run()


class _Distillation:
    """A run's fixed parts: teacher, corpus, student, logs."""

    def __init__(self, recipe: Recipe) -> None:
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        self.recipe, self.folder = recipe, recipe.output
        self.train_set = open_corpus(recipe.corpus, "train", recipe.limit)
        self.validation_set = open_corpus(recipe.corpus, "validation", recipe.limit)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if recipe.precision == "bf16" else "no",
            log_with=list(recipe.trackers) or None,
            project_dir=self.folder,
        )
        set_seed(recipe.seed)
        self.main = self.accelerator.is_main_process
        with self.accelerator.main_process_first():
            source = resolve_teacher(recipe.teacher)
        self.family: Family = open_family(source)
        self.teacher_hash = fingerprint(source)
        self.teacher = self.family.load()
        self.model: Any = build_student(self.teacher, recipe.student)
        self.family.tokens([u.text for u in self.train_set[:1]], [u.language for u in self.train_set[:1]])
        if self.main:
            recipe.save(self.folder / "recipe.yaml")
        self.log = RunLog(self.folder, self.main)
        if recipe.trackers:
            # tensorboard takes flat values only
            config = {key: str(value) for key, value in recipe.model_dump(mode="json").items()}
            self.accelerator.init_trackers("distill-workbench", config=config)

    def run(self) -> Path:
        """Targets, then stages, then the student's folder."""
        self.settings = TargetSettings(
            self.teacher_hash, self.recipe.targets.top_k, self.recipe.targets.temperature, self.recipe.margin.shortest
        )
        teacher_seconds = self._targets()
        self.model.to(self.accelerator.device)
        position = self._resume()
        for number, (name, stage) in enumerate(self.recipe.stages.items()):
            if number >= position.stage:
                self._stage(number, name, stage, position)
        return self._finish(position, teacher_seconds)

    def _targets(self) -> float:
        started = time.perf_counter()
        accelerator = self.accelerator
        cache = TargetCache(self.settings.folder())
        missing = sum(self.settings.key(u) not in cache for u in self.train_set)
        if missing:
            self.teacher.to(accelerator.device)
            with Progress("teacher's targets", missing, self.main) as progress:
                compute_targets(
                    self.teacher,
                    self.family,
                    self.train_set,
                    self.settings,
                    self.recipe.targets.batch_clips,
                    accelerator.process_index,
                    accelerator.num_processes,
                    lambda clips: progress.advance(clips * accelerator.num_processes),
                )
        else:
            log.info("teacher's targets: all %d clips are cached in %s", len(self.train_set), self.settings.folder())
        accelerator.wait_for_everyone()
        del self.teacher  # not needed again: everything it says is on disk
        return time.perf_counter() - started

    def _resume(self) -> Position:
        checkpoint = checkpoints.latest(self.folder / "checkpoints")
        if checkpoint is None:
            self.log.truncate(0)
            return Position()
        position = checkpoints.read_position(checkpoint)
        checkpoints.load_model(checkpoint, self.model)
        self.log.truncate(position.step)
        log.info("resuming %s at step %d", self.folder, position.step)
        return position

    def _stage(self, number: int, name: str, stage: Stage, position: Position) -> None:
        recipe, accelerator = self.recipe, self.accelerator
        clips = Clips(self.train_set, TargetCache(self.settings.folder()), self.settings)
        weighting = build_weighting(stage.weighting, TeacherStatistics(clips.teacher_losses()))
        student = Student(self.model, self.family, stage)
        trained = [p for p in student.parameters() if p.requires_grad]
        optimizer: Any = torch.optim.AdamW(
            trained, lr=stage.learning_rate, weight_decay=stage.weight_decay, fused=accelerator.device.type == "cuda"
        )
        if position.stage_step:
            checkpoint = checkpoints.latest(self.folder / "checkpoints")
            assert checkpoint is not None  # noqa: S101  a position inside a stage came from one
            checkpoints.load_optimizer(checkpoint, optimizer)
            weighting.load_state_dict(position.weighting)
        wrapped = torch.compile(student, dynamic=True) if recipe.compile else student
        wrapped, optimizer = accelerator.prepare(wrapped, optimizer)
        plans = [self._plan(number, stage, epoch) for epoch in range(stage.epochs)]
        ranks = accelerator.num_processes
        total = sum(len(plan) // ranks for plan in plans)
        log.info(
            "stage %s: %d steps on %s, %s parameters trained, padding %.0f %%",
            name, total, accelerator.device, f"{sum(p.numel() for p in trained):,}", 100 * padding_share(self.train_set, plans[0]),
        )  # fmt: skip
        last_saved = time.monotonic()
        with Progress(name, total, self.main, position.stage_step) as progress:
            while position.epoch < stage.epochs:
                plan = plans[position.epoch]
                for batch in self._loader(clips, plan[position.batch * ranks :]):
                    started = time.perf_counter()
                    self._step(wrapped, optimizer, batch, stage, name, weighting, position, total)
                    position.seconds += time.perf_counter() - started
                    position.batch += 1
                    position.weighting = weighting.state_dict()
                    progress.advance(1, self.log.latest)
                    # the last step of an epoch is saved below, after validation
                    if (
                        time.monotonic() - last_saved > 60 * recipe.checkpoint_minutes
                        and position.batch < len(plan) // ranks
                    ):
                        self._save(optimizer, position)
                        last_saved = time.monotonic()
                position.epoch, position.batch = position.epoch + 1, 0
                if stage.decoding and (position.epoch % recipe.validate_every == 0 or position.epoch == stage.epochs):
                    self._validate(name, position)
                if position.epoch < stage.epochs:
                    self._save(optimizer, position)
                    last_saved = time.monotonic()
        position.stage, position.epoch, position.stage_step = number + 1, 0, 0
        self._save(optimizer, position)
        accelerator.free_memory()

    def _plan(self, number: int, stage: Stage, epoch: int) -> list[list[int]]:
        """This epoch's batches, as many for each rank."""
        recipe, ranks = self.recipe, self.accelerator.num_processes
        plan = seconds_batches(
            self.train_set, stage.batch_seconds, recipe.margin.shortest, (recipe.seed, number, epoch)
        )
        plan += plan[: -len(plan) % ranks]  # a few batches twice, so that no rank waits for another
        return plan

    def _loader(self, clips: Clips, plan: list[list[int]]) -> DataLoader[Any]:
        """This rank's share of the batches, collated and, for a GPU, pinned."""
        accelerator = self.accelerator
        share = plan[accelerator.process_index :: accelerator.num_processes]
        return DataLoader(
            clips, batch_sampler=share, collate_fn=Collate(self.family), pin_memory=accelerator.device.type == "cuda"
        )

    def _step(
        self,
        student: Any,
        optimizer: Any,
        batch: Batch,
        stage: Stage,
        name: str,
        weighting: Any,
        position: Position,
        total: int,
    ) -> None:
        accelerator, recipe = self.accelerator, self.recipe
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _schedule(position.stage_step, total, stage.warmup_share)
        draw = np.random.default_rng([recipe.seed, position.step, accelerator.process_index])
        margin = float(draw.uniform(recipe.margin.shortest, recipe.margin.longest))
        batch = batch.to(accelerator.device)
        features = self.family.features(
            batch.waves, padded_seconds(batch, margin, self.family.window_seconds), accelerator.device
        )
        with accelerator.autocast():
            states, logits = student(features, batch)
        losses = step_losses(
            states, logits, batch, stage, recipe.targets.temperature, weighting, position.stage_step / max(total - 1, 1)
        )
        if not bool(torch.isfinite(losses.loss)):
            raise UserError(
                f"{self.folder}: the loss is not finite at step {position.step}; lower stages.{name}.learning_rate"
            )
        accelerator.backward(losses.loss)
        norm = accelerator.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], stage.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        position.stage_step += 1
        position.step += 1
        scalars = {
            "loss": float(losses.loss.detach()),
            "task": float(losses.task.mean()),
            "distillation": float(losses.distillation.mean()),
            "matching": float(losses.matching.mean()),
            "gradient_norm": float(norm),
            "learning_rate": optimizer.param_groups[0]["lr"],
            **losses.log,
        }
        self.log.step(
            position.step, name, scalars, weight_rows(batch.ids, losses, batch.teacher_loss, position.step, name)
        )
        if recipe.trackers:
            accelerator.log(scalars, step=position.step)

    def _validate(self, name: str, position: Position) -> None:
        """Score the student on the validation split, and keep it if it is the best so far."""
        if self.main:
            found: Validation = validate(self.model, self.family, self.validation_set, self.recipe.margin.inference)
            scores = found.scores()
            self.log.validation(position.step, name, scores)
            if position.best is None or (scores["wer"], scores["cer"]) < (position.best["wer"], position.best["cer"]):
                position.best = {**scores, "step": position.step}
                save_student(self.model, self.family, self.folder / "best", self.recipe.margin.inference)
        self.accelerator.wait_for_everyone()

    def _save(self, optimizer: Any, position: Position) -> None:
        if self.main:
            self.log.flush(position.step)
            checkpoints.save(self.folder / "checkpoints", self.model, optimizer, replace(position))
        self.accelerator.wait_for_everyone()

    def _finish(self, position: Position, teacher_seconds: float) -> Path:
        student = self.folder / "student"
        if self.main:
            if position.best is None:  # no stage decodes, so none was validated: the last student is the result
                save_student(self.model, self.family, self.folder / "best", self.recipe.margin.inference)
            with atomic_folder(student) as temporary:
                shutil.copytree(self.folder / "best", temporary, dirs_exist_ok=True)
            self.log.finish()
            write_json(self.folder / "scores.json", self._scores(position, teacher_seconds))
            shutil.rmtree(self.folder / "best")
            shutil.rmtree(self.folder / "checkpoints")
        if self.recipe.trackers:
            self.accelerator.end_training()
        self.accelerator.wait_for_everyone()
        return student

    def _scores(self, position: Position, teacher_seconds: float) -> dict[str, Any]:
        from workbench.host import describe_host

        train: list[Utterance] = self.train_set
        return {
            "schema": 1,
            "workbench": __version__,
            "teacher": {"name": self.recipe.teacher, "sha256": self.teacher_hash},
            "student": {"parameters": parameters(self.model)},
            "corpus": {
                "name": self.recipe.corpus,
                "clips": len(train),
                "seconds": round(sum(u.seconds for u in train), 1),
            },
            "validation": position.best,
            "seconds": {"teacher_pass": round(teacher_seconds, 1), "training": round(position.seconds, 1)},
            "steps": position.step,
            "host": describe_host(),
            "position": {k: v for k, v in asdict(position).items() if k in ("stage", "step")},
        }


def _schedule(step: int, total: int, warmup_share: float) -> float:
    """Factor of the learning rate: linear up during warm-up, then linear down to zero."""
    warmup = max(1, round(warmup_share * total))
    return (step + 1) / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))
