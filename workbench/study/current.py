"""Whether results in a study's folder are still valid: an edited recipe, other speech or another initial student make them stale."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.config.recipe import Recipe, parse_recipe
from workbench.core.errors import UserError
from workbench.core.files import read_json
from workbench.core.ownership import check_replaceable
from workbench.corpus import scored_clips
from workbench.run.folder import RUN, delete_run_files
from workbench.run.inputs import changed_inputs, changed_recipe, changed_run, clips_sha256, read_inputs
from workbench.study.plan import Study, Trial, arm_recipe

log = logging.getLogger("workbench")


def result_inputs(study: Study, recipe: Recipe) -> dict[str, str]:
    """What a trial's result is computed from besides its recipe: the run's inputs and the clips that it is scored on."""
    split = study.split
    also = {f"{split} clips of {other}": _clips_of(other, split, recipe.max_clips)[0] for other in study.test_also}
    # stages decide an input only where a weighting looks ahead, on other clips than it trains on, or where one names its teacher
    deciding = recipe.looks_ahead or any(stage.teacher for stage in recipe.stages.values())
    content = recipe.model_dump_json(exclude={"output"} if deciding else {"output", "stages"})
    return {**_inputs(content), f"{split} clips": _clips_of(recipe.corpus, split, recipe.max_clips)[0], **also}


@functools.lru_cache
def _inputs(content: str) -> dict[str, str]:
    import json

    stage = {"trainable": "all", "epochs": 1, "max_steps": 1, "learning_rate": 1.0}
    return read_inputs(parse_recipe({"stages": {"one": stage}, **json.loads(content), "output": "run"}, "study"))


@functools.lru_cache
def _clips_of(corpus: str, split: str, limit: int | None) -> tuple[str, list[str]]:
    """Hash of a split's clips, and the speaker of each."""
    clips = scored_clips(corpus, split, limit)
    return clips_sha256(clips), [clip.speaker for clip in clips]


def stale_reason(study: Study, trial: Trial, result: Mapping[str, Any]) -> str | None:
    """Why a result is stale for the study as it is now; None if it is not."""
    recipe = arm_recipe(study, trial)
    try:
        before = parse_recipe({**result["recipe"], "output": str(recipe.output)}, "a result's recipe")
    except (KeyError, UserError):
        return "its recipe was written by another version"
    if reason := changed_recipe(before, recipe):
        return reason
    if "inputs" not in result:
        return "it was written by a version that did not record corpus and checkpoints"
    if result["split"] != study.split:
        return f"it was scored on the split {result['split']!r}, not {study.split!r}"
    missing = [other for other in study.test_also if other not in result.get("test_also", {})]
    if missing:
        return f"it was not scored on {', '.join(missing)}"
    return changed_inputs(result["inputs"], result_inputs(study, recipe))


def read_result(study: Study, trial: Trial) -> dict[str, Any] | None:
    """A trial's result; None if it has not run yet, or if its result is stale, which is logged."""
    path = study.output / trial.name / "result.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json(path, "an arm's result")
    if reason := stale_reason(study, trial, found):
        log.warning("%s: its result is stale: %s", trial.name, reason)
        return None
    _take_speakers(study, trial, found)
    return found


def _take_speakers(study: Study, trial: Trial, result: dict[str, Any]) -> None:
    """Give a result's clips the speakers that their corpora name now.

    No run depends on who speaks: splits that were made by speaker stand in the clips, and other clips make it stale. Intervals do, since
    whole speakers are drawn, and a corpus may have been given its speakers after the run.
    """
    limit = arm_recipe(study, trial).max_clips
    scored = {trial.corpus: result[study.split], **result.get("test_also", {})}
    for corpus, content in scored.items():
        if corpus not in (trial.corpus, *study.test_also):
            continue
        speakers = _clips_of(corpus, study.split, limit)[1]
        if len(speakers) == len(content["references"]):  # a version that recorded no clips may have scored others
            content["speakers"] = speakers


def read_results(study: Study, chosen: Sequence[Trial]) -> dict[Trial, dict[str, Any]]:
    """Results of those trials that are done and not stale."""
    found = {trial: read_result(study, trial) for trial in chosen}
    return {trial: result for trial, result in found.items() if result is not None}


def discard_stale(study: Study, trial: Trial) -> None:
    """Empty a trial's folder if what it holds, finished or not, is stale for the study as it is now.

    Raises:
        UserError: it also holds files that are not a run's.
    """
    folder = study.output / trial.name
    result = folder / "result.json"
    if result.is_file():
        reason = stale_reason(study, trial, read_json(result, "an arm's result"))
    else:
        recipe = arm_recipe(study, trial)
        reason = changed_run(folder, recipe)
    if not reason:
        return
    check_replaceable(folder, RUN)
    log.warning("%s: runs again: %s", trial.name, reason)
    delete_run_files(folder)
