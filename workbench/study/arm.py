"""One run of a study: train, transcribe the split, keep the figures and the transcripts."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.corpus import Utterance, scored_clips
from workbench.encoded import encoded_folder
from workbench.evaluate import EncodedClips, Validation, validate, validate_encoded
from workbench.families import open_family
from workbench.files import read_json, write_json
from workbench.host import peak_memory_mb
from workbench.recipe import Recipe, parse_recipe
from workbench.study.plan import Cell, Study, arm_recipe, folder_of
from workbench.teachers import resolve_teacher
from workbench.train import distill

log = logging.getLogger("workbench")


def prepare(study: Study) -> None:
    """Train the student that all arms begin with, if the study names one; what is finished is left alone."""
    if study.prepare is not None:
        from workbench.recipe import load_recipe

        distill(load_recipe(study.prepare))


def run_arm(study: Study, cell: Cell) -> dict[str, Any]:
    """Run a cell to its end, or read what it came to; a killed one goes on.

    Returns:
        The content of result.json: the study's split with WER and CER in percent, loops, references and hypotheses;
        `validation` at the run's best step; seconds; peak memory.
    """
    recipe = arm_recipe(study, cell)
    done = recipe.output / "result.json"
    if done.is_file():
        found: dict[str, Any] = read_json(done, "an arm's result")
        return found
    student = distill(recipe)
    scores = read_json(recipe.output / "scores.json", "a run's scores")
    # torch's own peak on a GPU, the process's on a CPU
    peak = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else peak_memory_mb()
    result = {
        "schema": 1,
        **cell.__dict__,
        "recipe": recipe.model_dump(mode="json", exclude={"output"}),
        "seconds": scores["seconds"],
        "steps": scores["steps"],
        "peak_mb": round(peak, 1),
        "parameters": scores["student"]["parameters"],
        "validation": scores["validation"],
        study.split: _scored(recipe, student, study.split),
        "host": scores["host"],
    }
    write_json(done, result)
    if not study.keep_students:
        shutil.rmtree(student)
    return result


def teacher_file(study: Study, corpus: str) -> Path:
    """Where the teacher's own transcripts of a corpus are."""
    return study.output / "teacher" / f"{folder_of(corpus)}.json"


def score_teacher(study: Study, corpus: str) -> None:
    """Transcribe the study's split with the teacher, as it was trained to hear and greedily as the students are; what is there is left alone."""
    path = teacher_file(study, corpus)
    if path.is_file():
        return
    recipe = parse_recipe({**study.recipe, "output": str(study.output), "corpus": corpus}, "study")
    family = open_family(resolve_teacher(recipe.teacher))
    utterances = scored_clips(corpus, study.split, recipe.limit)
    log.info("the teacher transcribes %s, %s: %d clips", corpus, study.split, len(utterances))
    model = family.load().to("cuda" if torch.cuda.is_available() else "cpu")
    found = validate(model, family, utterances, family.silence)
    write_json(path, {"name": recipe.teacher, "corpus": corpus, **_as_json(found, utterances)})


def _as_json(found: Validation, utterances: Sequence[Utterance]) -> dict[str, Any]:
    return {**found.scores(), "ids": [u.id for u in utterances], "references": found.references,
            "hypotheses": found.hypotheses, "languages": found.languages}  # fmt: skip


def _scored(recipe: Recipe, student: Any, split: str) -> dict[str, Any]:
    """Transcribe a split with the student as it was saved, which is how its user will have it."""
    family = open_family(student)
    model = family.load().to("cuda" if torch.cuda.is_available() else "cpu")
    utterances = scored_clips(recipe.corpus, split, recipe.limit)
    frozen = all(stage.trainable == "decoder" for stage in recipe.stages.values())
    folder = encoded_folder(recipe, "evaluated") if frozen else None
    clips = EncodedClips(utterances, family, recipe.margin.inference, frozen, folder)
    clips.fill(model)
    return _as_json(validate_encoded(model, clips), utterances)
