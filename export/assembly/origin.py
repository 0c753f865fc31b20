"""Where an exported checkpoint came from: its name, the length that it reads at, the run that made it and what it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.edge.bundle.content import Run
from workbench.config.recipe import load_recipe
from workbench.core.errors import UserError
from workbench.core.files import read_json
from workbench.core.hashing import sha256
from workbench.corpus import corpus_identity
from workbench.models.whisper.family import trained_silence


@dataclass(frozen=True)
class Origin:
    """Where an exported checkpoint came from."""

    name: str
    checkpoint: Path
    length: str  # "true": reads clips at their own length; "padded": reads 30 s, as stock Whisper does
    margin_seconds: float
    run: Run | None  # recipe hash, teacher and validation scores, where a run made it


def find_origin(checkpoint: Path, name: str = "") -> Origin:
    """Read a checkpoint folder's description of itself; `workbench.json` marks a length-adaptive student."""
    margin = trained_silence(checkpoint)
    run = checkpoint.resolve().parent
    made: Run | None = None
    if (run / "scores.json").is_file() and (run / "recipe.yaml").is_file():
        scores = read_json(run / "scores.json", "a run's scores")
        made = {
            "recipe_sha256": sha256(run / "recipe.yaml"),
            "teacher": {**scores["teacher"], "name": published_name(scores["teacher"]["name"])},
            "validation": scores["validation"],
            "corpora": _trained_on(run / "recipe.yaml"),
        }
    label = name or (run.name if made else checkpoint.name)
    return Origin(label, checkpoint, "padded" if margin is None else "true", margin or 0.0, made)


def published_name(model: str) -> str:
    """A model's name without the folder that it lies in on this machine; a name on a hub stays as it is."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() else model


def _trained_on(recipe_file: Path) -> list[dict[str, str]] | None:
    """Which corpora a run's student was trained on, the run that it began with included; None where that can no longer be determined."""
    recipe = load_recipe(recipe_file)
    try:
        found = [corpus_identity(source) for source in (recipe.corpus, *recipe.more_corpora)]
    except UserError:
        return None  # a corpus has moved
    if recipe.student.init_from is None:
        return found
    earlier = Path(recipe.student.init_from).parent / "recipe.yaml"
    before = _trained_on(earlier) if earlier.is_file() else None
    return None if before is None else [*found, *(corpus for corpus in before if corpus not in found)]
