"""The teachers of a run: opened, run over the corpus, and freed once all their targets are on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from workbench.cache.decoded_audio import AudioCache
from workbench.cache.encoder_cache import encode_full_window
from workbench.cache.labelled_dataset import LabelledDataset
from workbench.cache.teacher_targets import TargetCache, TargetSettings, compute_targets
from workbench.cache.tensor_shards import ShardStore, cache_lock
from workbench.cache.uncertainty import measure_uncertainty
from workbench.config.recipe import Recipe
from workbench.core.errors import UserError
from workbench.core.hashing import cache_folder
from workbench.core.machine.distributed import wait_for_all
from workbench.core.progress import Progress
from workbench.corpus import Utterance
from workbench.evaluation.transcribe import EncodedClips, validate_encoded
from workbench.models import Family, open_family
from workbench.models.resolve import fingerprint, resolve_teacher
from workbench.training.teaching.resident_teacher import ResidentTeacher

log = logging.getLogger("workbench")


def check_share_tokens(recipe: Recipe, teachers: Mapping[str, Family]) -> None:
    """Raise UserError if a teacher has another vocabulary than the recipe's first one; `teachers` are all, by name."""
    first = teachers[recipe.teacher]
    for name, family in teachers.items():
        if not first.same_tokens(family):
            stages = (f"stages.{stage}.teacher" for stage in recipe.stages if recipe.teacher_of(stage) == name)
            raise UserError(
                f"{next(stages, 'more_teachers')}: {name!r} has a vocabulary of {family.vocabulary_size:,} tokens, "
                f"{recipe.teacher!r} one of {first.vocabulary_size:,}; teachers of one student must share a tokenizer"
            )


class TeacherEnsemble:
    """All teachers of a run, with the same tokenizer; `members` says which of them teach a stage."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        """Open them; raises UserError for one that cannot be opened or has another vocabulary than the first."""
        self.recipe, self.accelerator, self.main = recipe, accelerator, accelerator.is_main_process
        self.names = recipe.teachers
        with accelerator.main_process_first():
            folders = [resolve_teacher(name) for name in self.names]
        self.hashes = [fingerprint(folder) for folder in folders]
        self.families: list[Family] = [open_family(folder) for folder in folders]
        self.models: list[nn.Module] = [family.load() for family in self.families]
        self._rates: dict[int, float] = {}  # validation WER in percent, by number
        check_share_tokens(recipe, dict(zip(self.names, self.families, strict=True)))

    def number_of(self, stage: str) -> int:
        """Number of a stage's own teacher, whose loss weightings use."""
        return self.names.index(self.recipe.teacher_of(stage))

    def members(self, stage: str) -> tuple[int, ...]:
        """Numbers of all teachers of a stage, its own first."""
        return (self.number_of(stage), *range(1, 1 + len(self.recipe.more_teachers)))

    def settings(self, number: int) -> TargetSettings:
        """What a teacher's targets depend on; encoder states are kept where it is a matching stage's own."""
        targets = self.recipe.targets
        stages = self.recipe.stages.items()
        matched = any(stage.encoder_matching and self.number_of(name) == number for name, stage in stages)
        return TargetSettings(
            self.hashes[number],
            targets.top_k,
            targets.temperature,
            self.recipe.trailing_silence.train_min,
            matched,
            self.recipe.precision,
            self.families[number].trained_silence,
            targets.kind,
            targets.samples if targets.kind == "sampled" else 0,
            True if self.families[number].objective == "ctc" else None,
        )

    def labelled(
        self,
        utterances: list[Utterance],
        folder: Path | None,
        title: str,
        rank: int | None = None,
        world_size: int | None = None,
        ask: bool = True,
    ) -> LabelledDataset:
        """The utterances with every teacher's targets, those that are missing computed first.

        They are kept in `folder`, or else where every run finds them, and the decoded audio likewise. If `ask` is False, no teacher runs
        and the targets are empty.
        """
        accelerator = self.accelerator
        rank = accelerator.process_index if rank is None else rank
        world_size = accelerator.num_processes if world_size is None else world_size
        keys = [self.settings(0).key(u) for u in utterances]
        audio = AudioCache(None if folder is None else folder / "audio")
        audio_keys = [audio.key(u) for u in utterances]
        audio.check(utterances, audio_keys, rank, world_size)
        caches = []
        for number in range(len(self.families)):
            settings = self.settings(number)
            place = settings.folder() if folder is None else folder / str(number)
            # several runs may want the same targets; the second one finds them done
            with cache_lock(place):
                cache = TargetCache(settings, None if folder is None else place)
                cache.check(keys, rank, world_size)
                missing = sum(key not in cache for key in keys)
                if not missing and self.recipe.stream is None:
                    log.info("teacher's targets: all %d clips are cached in %s", len(utterances), cache.store.folder)
                elif missing:
                    self._ask(number, utterances, cache, audio, title, missing, rank, world_size, ask)
            cache.store.reload()
            caches.append(cache)
        self._decode(utterances, audio, audio_keys, rank, world_size)
        return LabelledDataset(utterances, keys, caches, audio, audio_keys)

    def _decode(
        self, utterances: list[Utterance], audio: AudioCache, keys: list[str], rank: int, world_size: int
    ) -> None:
        """Cache the audio of clips whose targets were cached already."""
        audio.store.reload()
        missing = sum(key not in audio for key in keys)
        if missing:
            with Progress("decoded audio", missing, self.main) as progress:
                audio.fill(utterances, keys, rank, world_size, partial(_advance, progress, world_size))
        wait_for_all()
        audio.store.reload()

    def _ask(
        self,
        number: int,
        utterances: list[Utterance],
        cache: TargetCache,
        audio: AudioCache,
        title: str,
        missing: int,
        rank: int,
        world_size: int,
        ask: bool,
    ) -> None:
        """Run a teacher over what the cache lacks."""
        accelerator, family = self.accelerator, self.families[number]
        model = self.models[number].to(accelerator.device) if ask else None
        name = title if len(self.names) == 1 else f"{title} ({self.names[number]})"
        with Progress(name, missing, self.main) as progress, accelerator.autocast():
            compute_targets(
                model, family, utterances, cache, self.recipe.targets.teacher_batch_size, rank, world_size,
                partial(_advance, progress, world_size), audio,
            )  # fmt: skip

    def shares(self, validation: list[Utterance], members: tuple[int, ...]) -> tuple[float, ...]:
        """Share of each of some teachers in the distillation loss, adding up to 1, as `teacher_weights` says.

        `best` and `softmax` depend on the teachers' WER on the validation split, each reading the length it was trained on.
        """
        wanted, count = self.recipe.teacher_weights, len(members)
        if count == 1:
            return (1.0,)
        if isinstance(wanted, list):
            return tuple(share / sum(wanted) for share in wanted)
        if wanted == "mean":
            return (1 / count,) * count
        for number in members:
            if number not in self._rates:
                family, model = self.families[number], self.models[number].to(self.accelerator.device)
                clips = EncodedClips(validation, family, family.silence)
                self._rates[number] = validate_encoded(model, clips).scores()["wer"]
                log.info("teacher %s: validation WER %.2f %%", self.names[number], self._rates[number])
        return shares_of([self._rates[number] for number in members], wanted)

    def uncertainty(self, number: int, dataset: LabelledDataset) -> dict[str, float]:
        """A teacher's uncertainty about each utterance, by id."""
        model = self.models[number].to(self.accelerator.device)
        missing = len(dataset.utterances)
        with Progress("teacher's uncertainty", missing, self.main) as progress, self.accelerator.autocast():
            return measure_uncertainty(
                model,
                self.families[number],
                dataset,
                self.settings(number),
                self.accelerator.process_index,
                self.accelerator.num_processes,
                progress.advance,
            )

    def resident(self, number: int, dataset: LabelledDataset) -> ResidentTeacher:
        """A teacher whose decoder can run in the steps; its encoder runs once over the corpus, at 30 s."""
        own, model = self.families[number], self.models[number].to(self.accelerator.device)
        place = cache_folder("encoded", ["teacher", self.hashes[number], self.recipe.precision])
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        with cache_lock(place):
            store = ShardStore(place)
            store.check(dataset.keys, rank, world_size)
            missing = sum(key not in store for key in dataset.keys)
            with Progress("teacher's encoder", missing, self.main) as progress, self.accelerator.autocast():
                encode_full_window(
                    model,
                    own,
                    dataset.utterances,
                    dataset.keys,
                    store,
                    rank,
                    world_size,
                    partial(_advance, progress, world_size),
                )
        store.reload()
        keys = {u.id: key for u, key in zip(dataset.utterances, dataset.keys, strict=True)}
        languages = {u.id: u.language for u in dataset.utterances}
        return ResidentTeacher(self.names[number], model, own, store, keys, languages)

    def dismiss(self) -> None:
        """Free the models."""
        self.models = []


def _advance(progress: Progress, world_size: int, clips: int) -> None:
    progress.advance(clips * world_size)  # the other processes keep pace


def shares_of(rates: list[float], how: str) -> tuple[float, ...]:
    """Shares from WERs in percent: `best` is all for the lowest, `softmax` is softmax(-WER)."""
    if how == "best":
        best = rates.index(min(rates))
        return tuple(float(i == best) for i in range(len(rates)))
    return tuple(torch.tensor([-rate for rate in rates], dtype=torch.float64).softmax(0).tolist())
