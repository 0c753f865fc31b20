"""A distillation run on Accelerate: teacher's targets, stages of training, the student's folder."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench import __version__, checkpoints
from workbench.allocator import bound_kernel_cache, keep_freed_memory
from workbench.checkpoints import Position
from workbench.corpus import Utterance, open_corpus, training_set
from workbench.ema import MovingAverage
from workbench.encoded import encode_clips
from workbench.errors import UserError
from workbench.evaluate import Validation, validate
from workbench.families import Family, open_family
from workbench.files import atomic_folder, write_json
from workbench.memory import Peak
from workbench.preflight import check_sharding, check_trackers
from workbench.progress import Progress
from workbench.recipe import Recipe, Stage, load_recipe
from workbench.run_log import RunLog
from workbench.stage import StageLoop
from workbench.store import Store
from workbench.students import build_student, check_pair, parameters, save_student
from workbench.targets import TargetCache, TargetSettings, compute_targets
from workbench.teachers import fingerprint, resolve_teacher
from workbench.windows import Window

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
    return Distillation(recipe).run()


class Distillation:
    """A run's fixed parts: teacher, corpus, student, logs."""

    def __init__(self, recipe: Recipe) -> None:
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        self.recipe, self.folder = recipe, recipe.output
        check_trackers(recipe)
        augment = recipe.augment
        self.train_set: list[Utterance] = []
        if recipe.stream is None:
            self.train_set = training_set(
                recipe.corpus, recipe.limit, recipe.more_corpora, augment.speeds, augment.concatenate, recipe.seed
            )
        self.validation_set = open_corpus(recipe.corpus, "validation", recipe.limit)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if recipe.precision == "bf16" else "no",
            log_with=list(recipe.trackers) or None,
            project_dir=self.folder,
        )
        check_sharding(self.accelerator)
        if self.accelerator.device.type == "cpu":
            bound_kernel_cache()
            keep_freed_memory()
        set_seed(recipe.seed)
        self.main = self.accelerator.is_main_process
        with self.accelerator.main_process_first():
            source = resolve_teacher(recipe.teacher)
        self.family: Family = open_family(source)
        self.teacher_hash = fingerprint(source)
        self.teacher = self.family.load()
        initial = recipe.student.initial
        origin = self.teacher if initial is None else open_family(resolve_teacher(initial)).load()
        self.model: Any = build_student(origin, recipe.student)
        matched = [name for name, stage in recipe.stages.items() if stage.encoder_matching]
        check_pair(self.model.config, self.teacher.config, matched)
        first = (self.train_set or self.validation_set)[:1]
        self.family.tokens([u.text for u in first], [u.language for u in first])
        if self.main:
            recipe.save(self.folder / "recipe.yaml")
        track = (lambda values, step: self.accelerator.log(values, step=step)) if recipe.trackers else None
        self.log = RunLog(self.folder, self.accelerator.process_index, track)
        if recipe.trackers:
            # tensorboard takes flat values only
            config = {key: str(value) for key, value in recipe.model_dump(mode="json").items()}
            self.accelerator.init_trackers("distill-workbench", config=config)

    def run(self) -> Path:
        """Targets, then stages, then the student's folder."""
        targets = self.recipe.targets
        matched = any(stage.encoder_matching for stage in self.recipe.stages.values())
        margin = self.recipe.margin.shortest
        self.settings = TargetSettings(
            self.teacher_hash, targets.top_k, targets.temperature, margin, matched, self.recipe.precision
        )
        started = time.perf_counter()
        if self.recipe.stream is None:
            self.whole = self._labelled(self.train_set, None, "teacher's targets")
            del self.teacher  # not needed again: everything it says is on disk
        teacher_seconds = time.perf_counter() - started
        self.model.to(self.accelerator.device)
        position = self._resume()
        for number, (name, stage) in enumerate(self.recipe.stages.items()):
            if number >= position.stage:
                StageLoop(self, number, name, stage, position)()
                shutil.rmtree(self.folder / "encoded", ignore_errors=True) if self.main else None
        return self._finish(position, teacher_seconds)

    def windows(self, name: str, stage: Stage, position: Position) -> Iterator[Window]:
        """What each round of a stage trains on, from `position` on."""
        if self.recipe.stream is None:
            started = time.perf_counter()
            window = self._with_encoded(self.whole, name, stage, self.folder / "encoded")
            position.seconds += time.perf_counter() - started
            while position.round < stage.epochs:
                yield window
            return
        from workbench.corpus.hub import Stream

        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        seconds = 3600 * self.recipe.stream.window_hours
        folder = self.folder / f"stream-{rank:03d}"
        for passed in range(position.stream_pass, stage.epochs):
            stream = Stream(self.recipe.corpus.removeprefix("hf:"), self.recipe.seed + passed, rank, ranks, seconds)
            utterances = iter(stream.windows(position.stream_window))
            while self.smallest((found := next(utterances, None)) is not None):
                assert found is not None  # noqa: S101  every process has one
                started = time.perf_counter()
                window = self._labelled(found, folder / "targets", "window's targets", rank=0, ranks=1)
                labelled = time.perf_counter()
                window = self._with_encoded(window, name, stage, folder / "encoded", rank=0, ranks=1)
                position.teacher_seconds += labelled - started
                position.seconds += time.perf_counter() - labelled
                yield window
                shutil.rmtree(folder, ignore_errors=True)
            log.info("the stream has ended once around; %d clips of it could not be used", stream.skipped)
            position.stream_pass, position.stream_window = passed + 1, 0

    def validate(self, name: str, position: Position, average: MovingAverage | None) -> None:
        """Score the student on the validation split, and keep it if it is the best so far."""
        with average.swapped_in() if average else nullcontext():
            model = self._unsharded()
            if self.main:
                found: Validation = validate(model, self.family, self.validation_set, self.recipe.margin.inference)
                scores = found.scores()
                self.log.validation(position.step, name, scores)
                best = position.best
                if best is None or (scores["wer"], scores["cer"]) < (best["wer"], best["cer"]):
                    position.best = {**scores, "step": position.step}
                    save_student(model, self.family, self.folder / "best", self.recipe.margin.inference)
        self.accelerator.wait_for_everyone()

    def together(self, wish: bool) -> bool:
        """The main process's answer, for what all must do or none."""
        if self.accelerator.num_processes == 1:
            return wish
        return bool(self.summed(torch.tensor([float(wish and self.main)]))[0])

    def summed(self, values: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.accelerator.num_processes == 1:
            return values
        total: Tensor = self.accelerator.reduce(values.to(self.accelerator.device), reduction="sum")
        return total

    def smallest(self, value: float) -> float:
        """Smallest of the processes' values."""
        if self.accelerator.num_processes == 1:
            return value
        mine = torch.tensor([float(value)], device=self.accelerator.device)
        return float(self.accelerator.gather(mine).min())

    def worst_of(self, peak: Peak | None) -> tuple[bool, float]:
        """Whether any process ran out of memory, and the largest share of the free memory that one took."""
        failed, share = (peak.failed, peak.used / max(peak.free, 1)) if peak else (False, 0.0)
        return self.smallest(-float(failed)) < 0, -self.smallest(-share)

    def _labelled(
        self,
        utterances: list[Utterance],
        folder: Path | None,
        title: str,
        rank: int | None = None,
        ranks: int | None = None,
    ) -> Window:
        """The utterances with the teacher's targets, those that are missing computed first.

        They are kept in `folder`, or else where every run finds them.
        """
        accelerator = self.accelerator
        rank = accelerator.process_index if rank is None else rank
        ranks = accelerator.num_processes if ranks is None else ranks
        cache = TargetCache(self.settings, folder)
        keys = [self.settings.key(u) for u in utterances]
        missing = sum(key not in cache for key in keys)
        if missing:
            self.teacher.to(accelerator.device)
            with Progress(title, missing, self.main) as progress, accelerator.autocast():
                compute_targets(
                    self.teacher, self.family, utterances, cache, self.recipe.targets.batch_clips, rank, ranks,
                    lambda clips: progress.advance(clips * ranks),
                )  # fmt: skip
        elif self.recipe.stream is None:
            log.info("teacher's targets: all %d clips are cached in %s", len(utterances), cache.store.folder)
        accelerator.wait_for_everyone()
        cache.store.reload()
        return Window(utterances, keys, cache)

    def _with_encoded(
        self, window: Window, name: str, stage: Stage, folder: Path, rank: int | None = None, ranks: int | None = None
    ) -> Window:
        """The window with the student's encoder states, if the stage leaves them as they are."""
        if stage.trainable != "decoder" or stage.encoder_matching or not stage.encode_once:
            return window
        if self.recipe.augment.changes_hearing:
            log.info(
                "stage %s: noise or masks change what the student hears, so its frozen encoder runs in every step", name
            )
            return window
        accelerator = self.accelerator
        rank = accelerator.process_index if rank is None else rank
        ranks = accelerator.num_processes if ranks is None else ranks
        store = Store(folder / name)
        missing = sum(key not in store for key in window.keys)
        with Progress("frozen encoder", missing, self.main) as progress, accelerator.autocast():
            encode_clips(
                self.model, self.family, window.utterances, window.keys, window.cache, store, self.recipe.margin,
                self.recipe.seed, rank, ranks, lambda clips: progress.advance(clips * ranks),
            )  # fmt: skip
        accelerator.wait_for_everyone()
        store.reload()
        return Window(window.utterances, window.keys, window.cache, store)

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

    def _unsharded(self) -> Any:
        """The student as one whole model; where it is sharded, on the main process only."""
        if not any(hasattr(p, "full_tensor") for p in self.model.parameters()):
            return self.model
        state = checkpoints.model_tensors(self.model)
        if not self.main:
            return None
        whole = type(self.model)(self.model.config)
        whole.load_state_dict(state, strict=False)
        whole.generation_config = self.model.generation_config
        return whole.to(self.accelerator.device).eval()

    def _finish(self, position: Position, teacher_seconds: float) -> Path:
        student = self.folder / "student"
        model = self._unsharded() if position.best is None else None
        if self.main:
            if model is not None:  # no stage decodes, so none was validated: the last student is the result
                save_student(model, self.family, self.folder / "best", self.recipe.margin.inference)
            with atomic_folder(student) as temporary:
                shutil.copytree(self.folder / "best", temporary, dirs_exist_ok=True)
            self.log.finish()
            write_json(self.folder / "scores.json", self._scores(position, teacher_seconds))
            shutil.rmtree(self.folder / "best")
            shutil.rmtree(self.folder / "checkpoints")
            for left in self.folder.glob("stream-*"):
                shutil.rmtree(left)
        if self.recipe.trackers:
            self.accelerator.end_training()
        self.accelerator.wait_for_everyone()
        return student

    def _scores(self, position: Position, teacher_seconds: float) -> dict[str, Any]:
        from workbench.host import describe_host

        train = self.train_set
        return {
            "schema": 1,
            "workbench": __version__,
            "teacher": {"name": self.recipe.teacher, "sha256": self.teacher_hash},
            "student": {"parameters": parameters(self.model)},
            "corpus": {
                "name": self.recipe.corpus,
                "more": self.recipe.more_corpora,
                "clips": len(train) or None,  # a stream is not counted
                "seconds": round(sum(u.seconds for u in train), 1) or None,
            },
            "validation": position.best,
            "seconds": {
                "teacher_pass": round(teacher_seconds + position.teacher_seconds, 1),
                "training": round(position.seconds, 1),
            },
            "steps": position.step,
            "processes": self.accelerator.num_processes,
            "host": describe_host(),
        }
