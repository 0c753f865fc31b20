"""The recipes and studies that come with the package: found by name, wherever it is installed."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from workbench.core.errors import UserError, did_you_mean

FOLDER = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class ShippedFile:
    """A recipe or a study of the package."""

    name: str  # such as quickstart or studies/clean
    path: Path
    about: str  # the first sentence of its comment

    @property
    def is_study(self) -> bool:
        """Whether it is a study, and not a recipe."""
        return any(line.startswith("arms:") for line in self.path.read_text(encoding="utf-8").splitlines())


def shipped_files() -> list[ShippedFile]:
    """All of them, by name."""
    found = []
    for path in sorted(FOLDER.rglob("*.yaml")):
        name = path.relative_to(FOLDER).with_suffix("").as_posix()
        found.append(ShippedFile(name, path, _first_sentence(path.read_text(encoding="utf-8"))))
    return found


def _first_sentence(text: str) -> str:
    """Of the comment that a file begins with."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return re.split(r"(?<=\.)\s", " ".join(line.lstrip("# ") for line in comment), maxsplit=1)[0]


def find_recipe(given: Path, what: str = "recipe") -> Path:
    """The file that a user means: a path, or the name of a shipped recipe or study.

    A file of that path comes first. A name may leave out its folders where it stays unique (`clean` for `studies/clean`); what
    earlier versions called `recipes/quickstart.yaml` is found, too.

    Raises:
        UserError: neither a file nor a name, or a name that several have.
    """
    if given.is_file():
        return given
    files = shipped_files()
    name = given.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    exact = [one for one in files if one.name == name]
    matching = exact or [one for one in files if one.name.endswith(f"/{name}")]
    if len(matching) == 1:
        return matching[0].path
    if matching:
        raise UserError(f"{given}: is the name of {', '.join(one.name for one in matching)}; give one of them in full")
    if given.is_dir():
        raise UserError(
            f"{given}: is a folder; expected a {what}: a YAML file, or a name as listed by `workbench recipes`"
        )
    hint = did_you_mean(name, [one.name for one in files] + [one.name.rsplit("/", 1)[-1] for one in files])
    raise UserError(f"{given}: neither a file nor the name of a shipped {what}{hint}; `workbench recipes` lists them")
