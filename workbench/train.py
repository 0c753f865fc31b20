"""A distillation run on Accelerate: teacher's targets, stages of training, the student's folder."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from workbench import __version__, checkpoints
from workbench.allocator import bound_kernel_cache, keep_freed_memory
from workbench.checkpoints import Position
from workbench.corpus import Utterance, scored_clips, training_set
from workbench.ema import MovingAverage
from workbench.encoded import calibration_clips, encode_clips, encoded_folder
from workbench.errors import UserError
from workbench.evaluate import EncodedClips, validate_encoded
from workbench.families import Family, open_family
from workbench.families.low_rank import compress, shaped_like
from workbench.files import atomic_folder, write_json
from workbench.inputs import FILE as INPUTS
from workbench.inputs import changed_recipe, changed_run, inputs_of
from workbench.on_policy import OnPolicy
from workbench.ownership import check_output
from workbench.preflight import check_schedules, check_sharding, check_trackers, check_transcripts
from workbench.processes import Processes, claimed_by_all, wait_for_all
from workbench.progress import Progress
from workbench.recipe import Recipe, load_recipe
from workbench.recipe_sections import Stage
from workbench.run_folder import check_run, discard, tidy
from workbench.run_log import RunLog
from workbench.self_teacher import SelfTeacher
from workbench.soft_targets import likeliest
from workbench.stage import StageLoop
from workbench.store import Store, filling
from workbench.students import build_student, check_pair, parameters, save_student
from workbench.tail import check_tail, matters
from workbench.teachers import resolve_teacher
from workbench.teaching import Teachers
from workbench.vocabulary import Vocabulary, narrow_model, widened
from workbench.weighting import needs_uncertainty
from workbench.windows import Window

log = logging.getLogger("workbench")
EARLY_CLIPS = 16  # whose tail is measured before the teacher's whole pass


def distill(recipe: Recipe, restart: bool = False, wait: bool = False) -> Path:
    """Run a recipe to its end, or go on where a killed run stopped; returns the student's folder.

    Args:
        recipe: what to do.
        restart: drop what the run folder holds.
        wait: if another process is training it, wait until that has ended.

    Raises:
        UserError: the recipe cannot be carried out here, or the run folder belongs to another recipe or is being trained.
    """
    check_output(recipe.output)
    if not restart and (done := _finished(recipe)) is not None:
        return done  # without asking for the folder: runs of a study may look at one student at a time
    with claimed_by_all(recipe.output, wait):
        return (None if restart else _finished(recipe)) or Distillation(recipe, restart).run()


def _finished(recipe: Recipe) -> Path | None:
    """The student of a finished run, None of one to be begun or gone on with; raises UserError if it is of another recipe."""
    run = recipe.output
    if (run / "recipe.yaml").is_file():
        if reason := changed_recipe(load_recipe(run / "recipe.yaml"), recipe):
            raise UserError(
                f"{run}: holds a run of another recipe ({reason}; see {run / 'recipe.yaml'}); "
                "add --restart to replace it, or output=FOLDER"
            )
        if (run / "scores.json").is_file():
            _check_inputs(run, changed_run(run, recipe))
            log.info("%s is finished; add --restart to train it anew", run)
            tidy(run)
            return run / "student"
    return None


def _check_inputs(run: Path, reason: str | None) -> None:
    if reason:
        raise UserError(f"{run}: holds a run on {reason} than now; add --restart to replace it, or output=FOLDER")


class Distillation:
    """A run's fixed parts: teacher, corpus, student, logs."""

    def __init__(self, recipe: Recipe, restart: bool = False) -> None:
        """Open everything; with `restart`, drop what the run folder holds once nothing else can be found wrong."""
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        self.recipe, self.folder = recipe, recipe.output
        check_run(recipe, restart)
        check_trackers(recipe)
        augment = recipe.augment
        self.train_set: list[Utterance] = []
        if recipe.stream is None:
            self.train_set = training_set(
                recipe.corpus, recipe.limit, recipe.more_corpora, augment.speeds, augment.concatenate, recipe.seed
            )
        check_schedules(recipe, self.train_set)
        self.validation_set = scored_clips(recipe.corpus, "validation", recipe.limit)
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
        self.processes = Processes(self.accelerator)
        self.main = self.processes.main
        self.teachers = Teachers(recipe, self.accelerator)
        self.family: Family = self.teachers.families[0]
        initial = recipe.student.initial
        source = self.family.folder if initial is None else resolve_teacher(initial)
        origin = self.teachers.models[0] if initial is None else open_family(source).load()
        self.model: Any = build_student(origin, recipe.student)
        self.calibration = calibration_clips(recipe, self.train_set, self.validation_set)
        if recipe.student.encoder_variance is not None:
            self._compress(recipe.student.encoder_variance)
        self.whole_matrix = torch.empty(0)  # of a student that knows only some tokens: the matrix of all
        self.shares: tuple[float, ...] = (1.0,)
        self.uncertainty: dict[str, float] | None = None
        self.tail: float | None = None  # mean mass of the targets' tail bucket
        self.on_policy: OnPolicy | None = None
        matched = [name for name, stage in recipe.stages.items() if stage.encoder_matching]
        check_pair(self.model.config, self.teachers.models[0].config, matched)
        check_transcripts([*self.train_set, *self.validation_set], self.family)
        inputs = inputs_of(recipe, self.train_set if recipe.stream is None else None, self.validation_set)
        if not restart and checkpoints.latest(self.folder / "checkpoints") is not None:
            _check_inputs(self.folder, changed_run(self.folder, recipe, inputs))
        wait_for_all()  # all have compared before the main process writes
        if self.main:
            if restart:
                discard(self.folder)
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
        self.shares = self.teachers.shares(self.validation_set)
        if self.recipe.stream is None:
            if self.recipe.targets.temperature > 1 and matters(self.recipe):
                # a few clips tell before hours of the teacher's pass; at temperature 1 the tail is small
                few = self.train_set[:: -(-len(self.train_set) // EARLY_CLIPS)]
                check_tail(self.recipe, self.teachers.labelled(few, None, "teacher's first targets"), self.processes)
            self.whole = self.teachers.labelled(self.train_set, None, "teacher's targets")
            self.tail = check_tail(self.recipe, self.whole, self.processes)
            if any(needs_uncertainty(stage.weighting) for stage in self.recipe.stages.values()):
                self.uncertainty = self.processes.gathered(self.teachers.uncertainty(self.whole))
            if self.recipe.student.vocabulary == "corpus":
                self._narrow()
            chosen = [stage.on_policy for stage in self.recipe.stages.values() if stage.on_policy]
            if chosen:
                self.on_policy = self.teachers.on_policy(chosen[0], self.whole, self.family)
            self.teachers.dismiss()  # not needed again: everything they say is on disk
        teacher_seconds = time.perf_counter() - started
        self.model.to(self.accelerator.device)
        position = self._resume()
        for number, (name, stage) in enumerate(self.recipe.stages.items()):
            if number >= position.stage:
                StageLoop(self, number, name, stage, position)()
                discard(self.folder, "encoded") if self.main else None
        return self._finish(position, teacher_seconds)

    def _compress(self, share: float) -> None:
        """Take the student's encoder products apart where that is cheaper, going by some clips at their own length."""
        margin = self.recipe.margin.inference
        features = [self.family.features([u.wave()], u.seconds + margin) for u in self.calibration]
        before = parameters(self.model)
        ranks = compress(self.model, features, share)
        log.info("encoder: %d products as two thinner ones, %.1f of %.1f M parameters left", len(ranks), parameters(self.model) / 1e6, before / 1e6)  # fmt: skip

    def _narrow(self) -> None:
        """Let the student know only the tokens of the corpus's texts and the teachers' likeliest there."""
        tokens, targets = set(self.family.special_tokens()), self.recipe.targets
        known = {(u.text, u.language) for u in [*self.train_set, *self.validation_set]}
        for text, language in known:
            labels = self.family.tokens([text], [language]).labels
            tokens.update(labels[labels >= 0].tolist())
        for cache in self.whole.caches:
            for key in self.whole.keys:
                said = cache.read(key, False, False)
                ids = likeliest(targets.kind, said.top_ids, said.top_logits, targets.top_k)
                tokens.update(ids.flatten().tolist())
        vocabulary = Vocabulary(sorted(tokens), self.model.config.vocab_size)
        log.info("vocabulary: %s of %s tokens", f"{len(vocabulary):,}", f"{self.model.config.vocab_size:,}")
        self.family = self.family.narrowed(vocabulary)
        self.whole_matrix = narrow_model(self.model, vocabulary)

    def windows(
        self, name: str, stage: Stage, position: Position, asks_teacher: Callable[[], bool] = lambda: True
    ) -> Iterator[Window]:
        """What each round of a stage trains on, from `position` on; a stream's teacher runs while it is asked."""
        if self.recipe.stream is None:
            started = time.perf_counter()
            window = self._with_encoded(self.whole, name, stage, self._encoded_folder(name))
            position.encoder_seconds += time.perf_counter() - started
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
            while self.processes.smallest((found := next(utterances, None)) is not None):
                assert found is not None  # noqa: S101  every process has one
                started = time.perf_counter()
                window = self.teachers.labelled(
                    found, folder / "targets", "window's targets", rank=0, ranks=1, ask=asks_teacher()
                )
                if self.tail is None and asks_teacher():
                    self.tail = check_tail(self.recipe, window, self.processes)
                labelled = time.perf_counter()
                window = self._with_encoded(window, name, stage, folder / "encoded" / name, rank=0, ranks=1)
                position.teacher_seconds += labelled - started
                position.encoder_seconds += time.perf_counter() - labelled
                yield window
                discard(self.folder, folder.name)
            log.info("the stream has ended once around; %d clips of it could not be used", stream.skipped)
            position.stream_pass, position.stream_window = passed + 1, 0

    def validate(
        self,
        name: str,
        position: Position,
        average: MovingAverage | None,
        clips: EncodedClips,
        itself: SelfTeacher | None = None,
    ) -> None:
        """Score the student on the validation split, and keep it if it is the best so far.

        A self-teacher is scored beside it: self-teaching can collapse, and that is where it would show first.
        """
        with average.swapped_in() if average else nullcontext():
            model = self._unsharded()
            if self.main:
                scores = validate_encoded(model, clips).scores()
                if itself is not None and itself.plan.kind != "intermediate":
                    scores["self_teacher_wer"] = validate_encoded(itself.model, clips).scores()["wer"]
                self.log.validation(position.step, name, scores)
                best = position.best
                if best is None or (scores["wer"], scores["cer"]) < (best["wer"], best["cer"]):
                    position.best = {**scores, "step": position.step}
                    self._save_student(model)
        wait_for_all()

    def _save_student(self, model: Any) -> None:
        known = self.family.vocabulary
        with widened(model, known, self.whole_matrix) if known is not None else nullcontext():
            save_student(model, self.family, self.folder / "best", self.recipe.margin.inference)

    def _encoded_folder(self, name: str) -> Path:
        """Where a frozen encoder's states are kept: if no stage has trained it, where every run finds them."""
        return (
            encoded_folder(self.recipe, "trained", self.calibration)
            if self.untrained(name)
            else self.folder / "encoded" / name
        )

    def untrained(self, name: str) -> bool:
        """Whether the student's encoder is as it was at the beginning, all through a stage."""
        until = list(self.recipe.stages).index(name) + 1
        return all(stage.trainable == "decoder" for stage in list(self.recipe.stages.values())[:until])

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
        # several runs with the same frozen encoder may be under way; in a run of its own folder there is no other
        with filling(folder):
            store = Store(folder)
            store.check(window.keys, rank, ranks)
            missing = sum(key not in store for key in window.keys)
            with Progress("frozen encoder", missing, self.main) as progress, accelerator.autocast():
                encode_clips(
                    self.model, self.family, window.utterances, window.keys, window.caches[0], store, self.recipe.margin,
                    self.recipe.seed, rank, ranks, lambda clips: progress.advance(clips * ranks),
                )  # fmt: skip
        store.reload()
        return replace(window, encoded=store)

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
        whole = shaped_like(type(self.model)(self.model.config), self.model.config)
        whole.load_state_dict(state, strict=False)
        whole.generation_config = self.model.generation_config
        return whole.to(self.accelerator.device).eval()

    def _finish(self, position: Position, teacher_seconds: float) -> Path:
        student = self.folder / "student"
        model = self._unsharded() if position.best is None else None
        if self.main:
            if model is not None:  # no stage decodes, so none was validated: the last student is the result
                self._save_student(model)
            with atomic_folder(student) as temporary:
                shutil.copytree(self.folder / "best", temporary, dirs_exist_ok=True)
            self.log.finish()
            write_json(self.folder / "scores.json", self._scores(position, teacher_seconds))
            tidy(self.folder)
        wait_for_all()
        if self.recipe.trackers:
            self.accelerator.end_training()
        return student

    def _scores(self, position: Position, teacher_seconds: float) -> dict[str, Any]:
        from workbench.host import describe_host

        train = self.train_set
        return {
            "schema": 1,
            "workbench": __version__,
            "teacher": {"name": self.recipe.teacher, "sha256": self.teachers.hashes[0]},
            "teachers": dict(zip(self.teachers.names, self.shares, strict=True)),
            "student": {"parameters": parameters(self.model), "vocabulary": self.model.config.vocab_size},
            "corpus": {
                "name": self.recipe.corpus,
                "more": self.recipe.more_corpora,
                "clips": len(train) or None,  # a stream is not counted
                "seconds": round(sum(u.seconds for u in train), 1) or None,
            },
            "targets": {
                "kind": self.recipe.targets.kind,
                "temperature": self.recipe.targets.temperature,
                "tail_mass": None if self.tail is None else round(self.tail, 4),
            },
            "validation": position.best,
            "seconds": {
                "teacher_pass": round(teacher_seconds + position.teacher_seconds, 1),
                "frozen_encoder": round(position.encoder_seconds, 1),
                "training": round(position.seconds, 1),
                "look_ahead": round(position.look_ahead_seconds, 1),
                "sampling": round(position.sampling_seconds, 1),
            },
            "steps": position.step,
            "processes": self.accelerator.num_processes,
            "host": describe_host(),
        }
