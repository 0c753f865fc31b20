"""What a run is computed from besides its recipe: the content of its corpora and checkpoints, which may change under the same name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.config.named_corpora import is_dataset
from workbench.config.recipe import Recipe, load_recipe
from workbench.core.files import read_json
from workbench.core.hashing import hash_json
from workbench.corpus import Utterance, recipe_meta_set, recipe_training_set, scored_clips
from workbench.models.resolve import fingerprint, resolve_teacher

FILE = "inputs.json"  # in a run's folder


def clips_sha256(utterances: Sequence[Utterance]) -> str:
    """Hash of clips: ids, audio, transcripts and languages, in their order."""
    return hash_json([[u.id, u.audio_sha256(), u.text, u.language] for u in utterances])


def inputs_of(
    recipe: Recipe, train: Sequence[Utterance] | None, validation: Sequence[Utterance], meta: Sequence[Utterance] = ()
) -> dict[str, str]:
    """Hashes of a run's inputs by name.

    Args:
        recipe: the run's recipe.
        train: its training set; None for a stream, whose clips are not known beforehand.
        validation: its validation split.
        meta: what its weighting looks ahead on, if it does.
    """
    names = {"teacher": recipe.teacher, "initial student": recipe.student.init_from}
    names |= {f"teacher {number}": name for number, name in enumerate(recipe.more_teachers, 2)}
    names |= {f"teacher of stage {name}": stage.teacher for name, stage in recipe.stages.items()}
    found = {what: fingerprint(resolve_teacher(name)) for what, name in names.items() if name is not None}
    found["validation clips"] = clips_sha256(validation)
    if meta:
        found["meta clips"] = clips_sha256(meta)
    return found if train is None else {**found, "training clips": clips_sha256(train)}


def read_inputs(recipe: Recipe) -> dict[str, str]:
    """`inputs_of` with the clips read from the corpora; a hub's are left out, since they would have to be fetched."""
    if any(is_dataset(source) for source in (recipe.corpus, *recipe.more_corpora)):
        return {what: value for what, value in inputs_of(recipe, None, ()).items() if "clips" not in what}
    train = recipe_training_set(recipe)
    return inputs_of(
        recipe, train, scored_clips(recipe.corpus, "validation", recipe.max_clips), recipe_meta_set(recipe)
    )


def changed_inputs(recorded: Mapping[str, object], now: Mapping[str, str]) -> str | None:
    """Names of the inputs that are no longer those recorded, or None; inputs that either side lacks are not compared."""
    different = [what for what in recorded if what in now and recorded[what] != now[what]]
    return f"other {', '.join(different)}" if different else None


def changed_recipe(before: Recipe, now: Recipe) -> str | None:
    """First key that makes two recipes train different students, with both values, or None."""
    if before.same_training(now):
        return None
    old, new = (_flat(r.model_dump(mode="json")) for r in (before, now))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key) and key.split(".")[0] not in Recipe.FREE]
    return f"{keys[0]} was {old.get(keys[0])!r} and is {new.get(keys[0])!r}"


def changed_run(folder: Path, recipe: Recipe, now: Mapping[str, str] | None = None) -> str | None:
    """Why the run in a folder is not this recipe's with its inputs as they are now; None if it is, or if there is none.

    Args:
        folder: the run's folder.
        recipe: what is to be run.
        now: its inputs; read here if not given.
    """
    if not (folder / "recipe.yaml").is_file():
        return None
    if reason := changed_recipe(load_recipe(folder / "recipe.yaml"), recipe):
        return reason
    if not (folder / FILE).is_file():
        return None  # written by a version that did not record them
    return changed_inputs(read_json(folder / FILE, "a run's inputs"), now or read_inputs(recipe))


def _flat(content: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(content, dict):
        return {prefix: content}
    out: dict[str, object] = {}
    for key, value in content.items():
        out |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out
