"""The folder of a run: which files in it are the run's own, and so may be deleted by it."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.config.recipe import Recipe
from workbench.core.errors import UserError
from workbench.core.files import expand_user
from workbench.core.ownership import (
    CHECKPOINT,
    IsOwnFile,
    OutputKind,
    check_output,
    check_replaceable,
    foreign,
    recover_below,
    remove,
)

_STORE = r"(shard-\d{3}-\d{6}\.safetensors|index-\d{3}\.jsonl)"
_OWN = re.compile(
    r"recipe\.yaml|inputs\.json|metrics\.jsonl|scores\.json|result\.json|weights\.(parquet|html)"
    r"|weights/\d{8}-\d{3}\.parquet"
    r"|checkpoints/step-\d{8}/[a-z0-9]+\.(safetensors|json)"
    rf"|(stream-\d{{3}}/)?encoded/[^/]+/{_STORE}|stream-\d{{3}}/targets/(\d+|audio)/{_STORE}"
    r"|(stream-\d{3}/)?encoded/\.?[^/]+\.lock|stream-\d{3}/targets/\.?(\d+|audio)\.lock"
    rf"|oracle/[^/]+/((states|targets)/{_STORE}|(oracle|training)\.safetensors|(report|uncertainty)\.json|\.?(states|targets)\.lock)"
    r"|distill-workbench/(.+/)?(events\.out\.tfevents\.[^/]+|hparams\.yml)"  # of TensorBoard
)
_STUDENTS = ("student", "best")
# what a checkpoint consists of; a run from before there were records has nothing else in its students' folders
CHECKPOINT_FILE = re.compile(
    r"(config|generation_config|preprocessor_config|tokenizer|tokenizer_config|vocab|added_tokens|special_tokens_map"
    r"|normalizer|workbench)\.json|merges\.txt|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
# folders that are gone when the run has ended; and `stream-NNN`
_PASSING = ("best", "checkpoints", "encoded", "oracle", "weights")


def _own(run: Path) -> IsOwnFile:
    students = {
        name: CHECKPOINT.own(run / name) or (lambda file: bool(CHECKPOINT_FILE.fullmatch(file))) for name in _STUDENTS
    }

    def own(name: str) -> bool:
        first, _, rest = name.partition("/")
        return students[first](rest) if first in students else bool(_OWN.fullmatch(name))

    return own


def _own_or_bundles(run: Path) -> IsOwnFile | None:
    if not (run / "recipe.yaml").is_file():
        return None
    own = _own(run)
    bundles = {path.parent.name for path in run.glob("*/bundle.json")}
    lock = re.compile(r"\.[^/]+\.lock")  # of a command that writes there
    return lambda name: name.partition("/")[0] in bundles or bool(lock.fullmatch(name)) or own(name)


# bundles, reports and the log of a study's runner belong to other commands, which put them there by default: they stay
RUN = OutputKind("run", _own_or_bundles, kept=("report.json", "report.html", "log.txt"))


def check_run(recipe: Recipe, restart: bool) -> None:
    """Raise UserError if a run's folder holds files that are not a run's and in its way.

    To start or restart a run, every file there must be a run's own; to resume one, every file in the folders that it deletes.
    """
    named = [*recipe.teachers, recipe.corpus, *recipe.more_corpora, recipe.student.init_from]
    inputs = [expand_user(name) for name in named if name]
    run = recipe.output
    if restart or not (run / "recipe.yaml").is_file():
        check_replaceable(run, RUN, inputs, within=True)
        return
    check_output(run, inputs, within=True)
    recover_below(run)
    for name in foreign(run, _own(run)):
        if re.match(rf"(student|stream-\d{{3}}|{'|'.join(_PASSING)})/", name):
            raise UserError(
                f"{run}: holds {name!r}, which is not part of the run, in a folder that the run deletes; move it away"
            )


def delete_run_files(run: Path, folder: str = "") -> None:
    """Delete a run's own files: all, or those in one folder of it. What is not the run's own stays."""
    own = _own(run)
    last = ("student/source.json", "best/source.json", "recipe.yaml")  # by which others are known
    if folder:
        remove(run / folder, lambda name: own(f"{folder}/{name}"), last=("source.json",))
    else:
        remove(run, own, first=("result.json", "scores.json"), last=last)


def delete_temporary_files(run: Path) -> None:
    """Delete what a finished run no longer needs; a kill may have prevented it at the run's end."""
    recover_below(run)
    for folder in (*_PASSING, *(path.name for path in run.glob("stream-*"))):
        delete_run_files(run, folder)
