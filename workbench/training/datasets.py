"""What a stage trains on in each epoch: the corpus with its targets, or one window of a stream after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from workbench.cache.encoder_cache import EncodingSettings, encode_clips, encoder_cache_folder
from workbench.cache.labelled_dataset import LabelledDataset
from workbench.cache.tail import check_tail
from workbench.cache.tensor_shards import ShardStore, cache_lock
from workbench.config.sections import Stage
from workbench.core.progress import Progress
from workbench.corpus import Utterance
from workbench.corpus.hub import Stream
from workbench.run.checkpoints import Timers, TrainingProgress
from workbench.run.folder import delete_run_files
from workbench.run.preflight import alignable
from workbench.training.context import RunContext
from workbench.training.quantization import Quantization
from workbench.training.teaching.teacher_ensemble import TeacherEnsemble

log = logging.getLogger("workbench")


class StageDatasets:
    """Labelled clips for every stage of a run.

    Args:
        context: the run's context.
        teachers: the teachers, which label the windows of a stream.
        whole: the corpus with its targets; None for a stream.
        calibration: clips that the student's encoder was compressed on, if it was.
        tail: mean probability in the tail bucket of `whole`'s targets, if it is known.
    """

    whole: LabelledDataset | None
    tail: float | None  # for a stream it is measured on the first window

    def __init__(
        self,
        context: RunContext,
        teachers: TeacherEnsemble,
        whole: LabelledDataset | None,
        calibration: Sequence[Utterance] = (),
        tail: float | None = None,
    ) -> None:
        self.context, self._teachers, self.whole, self._calibration = context, teachers, whole, calibration
        self.tail = tail

    def epochs(
        self,
        name: str,
        stage: Stage,
        progress: TrainingProgress,
        timers: Timers,
        asks_teacher: Callable[[], bool] = lambda: True,
        quantization: Quantization | None = None,
    ) -> Iterator[LabelledDataset]:
        """What each epoch of a stage trains on, from `progress` on; for a stream, one dataset per window.

        Args:
            name: the stage's name.
            stage: its settings.
            progress: where the stage is; for a stream, its pass and window are advanced here when a pass has ended.
            timers: timers for the teacher's and the frozen encoder's passes.
            asks_teacher: whether the teacher is needed for the next window of a stream.
            quantization: what the stage rounds, a frozen encoder included.
        """
        if self.whole is not None:
            with timers.timing("encoder"):
                teachers = self.context.teachers[name]
                if teachers.oracle is None:
                    whole = self.whole.taught_by(teachers.members)
                else:
                    whole = replace(self.whole, caches=[teachers.oracle])
                dataset = self._with_encoded(whole, name, stage, self._encoded_folder(name, stage), quantization)
            while progress.epoch < stage.epochs:
                yield dataset
            return
        yield from self._stream(name, stage, progress, timers, asks_teacher, quantization)

    def _stream(
        self,
        name: str,
        stage: Stage,
        progress: TrainingProgress,
        timers: Timers,
        asks_teacher: Callable[[], bool],
        quantization: Quantization | None,
    ) -> Iterator[LabelledDataset]:
        context = self.context
        recipe, processes = context.recipe, context.processes
        assert recipe.stream is not None  # noqa: S101  there is no whole corpus
        rank, world_size = context.accelerator.process_index, context.accelerator.num_processes
        seconds = 3600 * recipe.stream.window_hours
        folder = context.folder / f"stream-{rank:03d}"
        for passed in range(progress.stream_pass, stage.epochs):
            stream = Stream(recipe.corpus, recipe.seed + passed, rank, world_size, seconds)
            windows = iter(stream.windows(progress.stream_window))
            while processes.all_reduce_min((found := next(windows, None)) is not None):
                assert found is not None  # noqa: S101  every process has one
                found = alignable(found, context.family, recipe.trailing_silence.train_min, stream=True)
                with timers.timing("teacher"):
                    dataset = self._teachers.labelled(
                        found, folder / "targets", "window's targets", rank=0, world_size=1, ask=asks_teacher()
                    )
                    if self.tail is None and asks_teacher():
                        self.tail = check_tail(recipe, dataset, processes)
                with timers.timing("encoder"):
                    dataset = self._with_encoded(
                        dataset, name, stage, folder / "encoded" / name, quantization, rank=0, world_size=1
                    )
                yield dataset
                delete_run_files(context.folder, folder.name)
            log.info("one pass over the stream has ended; %d of its clips could not be used", stream.skipped)
            progress.stream_pass, progress.stream_window = passed + 1, 0

    def _encoded_folder(self, name: str, stage: Stage) -> Path:
        """Where a frozen encoder's states are kept: if no stage has trained it, where every run finds them."""
        return (
            encoder_cache_folder(self.context.recipe, "trained", self._calibration, stage.quantization)
            if self.context.encoder_untrained(name)
            else self.context.folder / "encoded" / name
        )

    def _with_encoded(
        self,
        dataset: LabelledDataset,
        name: str,
        stage: Stage,
        folder: Path,
        quantization: Quantization | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> LabelledDataset:
        """The clips with the student's encoder states, if the stage freezes the encoder."""
        context = self.context
        recipe, accelerator = context.recipe, context.accelerator
        if stage.trainable != "decoder" or stage.encoder_matching or not stage.cache_encoder_states:
            return dataset
        if recipe.augment.changes_hearing:
            log.info(
                "stage %s: noise or masks change the student's audio, so its frozen encoder runs in every step", name
            )
            return dataset
        rank = accelerator.process_index if rank is None else rank
        world_size = accelerator.num_processes if world_size is None else world_size
        model = context.whole_model()  # the encoder is called on its own, for which FSDP does not gather its parameters
        # several runs with the same frozen encoder may be under way; in the run's own folder there is no other
        with cache_lock(folder):
            store = ShardStore(folder)
            store.check(dataset.keys, rank, world_size)
            missing = sum(key not in store for key in dataset.keys)
            rounded = nullcontext() if quantization is None else quantization.applied()
            with (
                Progress("frozen encoder", missing, context.processes.is_main) as shown,
                accelerator.autocast(),
                rounded,
            ):
                encode_clips(
                    model,
                    context.family,
                    dataset,
                    store,
                    EncodingSettings(
                        margin=recipe.trailing_silence, seed=recipe.seed, rank=rank, world_size=world_size
                    ),
                    lambda clips: shown.advance(clips * world_size),
                )
        store.reload()
        return replace(dataset, encoded=store)
