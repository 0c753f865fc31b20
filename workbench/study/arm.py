"""One run of a study: train, transcribe the split, keep the figures and the transcripts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench.cache.encoder_cache import calibration_clips, encoder_cache_folder
from workbench.config.recipe import Recipe, parse_recipe
from workbench.core.errors import UserError
from workbench.core.files import read_json, write_json
from workbench.core.hashing import hash_json
from workbench.core.machine.distributed import distributed_output_lock, start_processes, wait_for_all
from workbench.core.machine.kernels import choose_cuda_kernels
from workbench.core.machine.memory import peak_resident_mb
from workbench.corpus import Utterance, recipe_training_set, scored_clips
from workbench.evaluation.transcribe import EncodedClips, SplitTranscripts, validate, validate_encoded
from workbench.models import Family, open_family
from workbench.models.resolve import fingerprint, resolve_teacher
from workbench.run.folder import delete_run_files
from workbench.run.inputs import changed_run, clips_sha256
from workbench.study.current import discard_stale, read_result, result_inputs
from workbench.study.overlap import check_strangers
from workbench.study.plan import Study, Trial, arm_recipe, folder_of
from workbench.training.trainer import distill

log = logging.getLogger("workbench")


def prepare(study: Study) -> None:
    """Train the student that all arms start from, if the study names one; what is finished is left alone.

    Raises:
        UserError: the student there was trained by another recipe, or on other speech; or a clip of `test_also` is trained on.
    """
    check_strangers(study)
    if study.prepare is not None:
        from workbench.config.recipe import load_recipe

        recipe = load_recipe(study.prepare)
        if reason := changed_run(recipe.output, recipe):
            raise UserError(
                f"{recipe.output}: the student that the arms start from was not trained by {study.prepare} as it is now ({reason}); "
                f"run `workbench distill {study.prepare} --restart`, then the study again"
            )
        distill(recipe, wait=True)  # another run of the study may be training it


def run_arm(study: Study, trial: Trial) -> dict[str, Any]:
    """Run a trial to its end, or read its result; a killed one resumes.

    One whose recipe, corpus, teacher or initial student has changed since it began is run again.

    Returns:
        The content of result.json: the study's split with WER and CER in percent, loops, references and hypotheses;
        `validation` at the run's best step; seconds; peak memory.
    """
    recipe = arm_recipe(study, trial)
    with distributed_output_lock(recipe.output):
        if start_processes().is_main_process:
            discard_stale(study, trial)
        wait_for_all()
        if (found := read_result(study, trial)) is not None:
            return found
        return _run(study, trial, recipe)


def _run(study: Study, trial: Trial, recipe: Recipe) -> dict[str, Any]:
    student = distill(recipe)
    scores = read_json(recipe.output / "scores.json", "a run's scores")
    # torch's own peak on a GPU, the process's on a CPU
    peak = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else peak_resident_mb()
    result = {
        "schema": 1,
        **trial.__dict__,
        "recipe": recipe.model_dump(mode="json", exclude={"output"}),
        "inputs": result_inputs(study, recipe),
        "split": study.split,
        "seconds": scores["seconds"],
        "steps": scores["steps"],
        "peak_mb": round(peak, 1),
        "parameters": scores["student"]["parameters"],
        "validation": scores["validation"],
        study.split: _scored(recipe, student, study.split, recipe.corpus),
        "test_also": {corpus: _scored(recipe, student, study.split, corpus) for corpus in study.test_also},
        "host": scores["host"],
    }
    write_json(recipe.output / "result.json", result)
    if not study.keep_students:
        delete_run_files(recipe.output, student.name)
    return result


def teacher_scores(study: Study, corpus: str) -> dict[str, Any] | None:
    """The teacher's transcripts of the study's split and their scores; None if there are none of this teacher on these clips."""
    path = _teacher_file(study, corpus)
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json(path, "the teacher's transcripts")
    if found.get("key") != _teacher_key(study, corpus):
        log.warning("%s: is of another teacher or of other clips, and is ignored", path)
        return None
    return found


def score_teacher(study: Study, corpus: str) -> None:
    """Transcribe the study's split with the teacher, at the length it was trained on, and greedily like the students.

    An existing result is kept, unless it is of another teacher or of other clips.
    """
    if teacher_scores(study, corpus) is not None:
        return
    recipe = _teacher_recipe(study, corpus)
    family = open_family(resolve_teacher(recipe.teacher))
    utterances = scored_clips(corpus, study.split, recipe.max_clips)
    log.info("the teacher transcribes %s, %s: %d clips", corpus, study.split, len(utterances))
    model = _on_device(family)
    found = validate(model, family, utterances, family.silence)
    content = {"name": recipe.teacher, "corpus": corpus, "split": study.split, "key": _teacher_key(study, corpus)}
    write_json(_teacher_file(study, corpus), {**content, **_as_json(found, utterances)})


def _on_device(family: Family) -> nn.Module:
    """The checkpoint's model on the GPU, if there is one."""
    choose_cuda_kernels()
    return family.load().to("cuda" if torch.cuda.is_available() else "cpu")


def _teacher_file(study: Study, corpus: str) -> Path:
    return study.output / "teacher" / f"{folder_of(corpus)}-{study.split}.json"


def _teacher_recipe(study: Study, corpus: str) -> Recipe:
    return parse_recipe({**study.recipe, "output": str(study.output), "corpus": corpus}, "study")


def _teacher_key(study: Study, corpus: str) -> str:
    """Hash of the teacher's checkpoint and of the clips that it transcribes."""
    recipe = _teacher_recipe(study, corpus)
    clips = clips_sha256(scored_clips(corpus, study.split, recipe.max_clips))
    return hash_json([fingerprint(resolve_teacher(recipe.teacher)), clips])


def _as_json(found: SplitTranscripts, utterances: Sequence[Utterance]) -> dict[str, object]:
    return {**found.scores(), "ids": [u.id for u in utterances], "references": found.references,
            "hypotheses": found.hypotheses, "languages": found.languages, "speakers": [u.speaker for u in utterances]}  # fmt: skip


def _scored(recipe: Recipe, student: Path, split: str, corpus: str) -> dict[str, object]:
    """Transcribe a split with the student as it was saved, which is how its user will have it."""
    family = open_family(student)
    model = _on_device(family)
    utterances = scored_clips(corpus, split, recipe.max_clips)
    frozen = all(stage.trainable == "decoder" for stage in recipe.stages.values())
    folder = encoder_cache_folder(recipe, "evaluated", _calibration(recipe)) if frozen else None
    clips = EncodedClips(utterances, family, recipe.trailing_silence.inference, frozen, folder)
    clips.fill(model)
    return _as_json(validate_encoded(model, clips), utterances)


def _calibration(recipe: Recipe) -> Sequence[Utterance]:
    if recipe.student.encoder_low_rank_variance is None:
        return []
    train = recipe_training_set(recipe)
    return calibration_clips(recipe, train, [])
