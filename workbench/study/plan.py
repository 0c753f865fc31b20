"""What a study consists of, read from its YAML file."""

from __future__ import annotations

import copy
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from workbench.config.base import Section
from workbench.config.recipe import Recipe, load_recipe, override, parse_recipe
from workbench.config.renamed import use_current_names
from workbench.config.shipped import find_recipe
from workbench.core.errors import UserError, did_you_mean
from workbench.core.files import read_yaml
from workbench.core.hashing import cache_key
from workbench.text.languages import language_code

PLAIN = re.compile(r"[\w+-][\w.+-]*")  # what may be a folder's name; not "..", nor a path


class Contrast(Section):
    """One arm against another on one corpus."""

    arm: str
    against: str
    corpus: str


class Study(Section):
    """A study's file. Arms and students are overrides of the recipe, written as on the command line of `distill`."""

    output: Path = Field(description="folder of the study")
    prepare: Path | None = Field(
        None,
        description="recipe, beside the study's file, whose student is every arm's initial one; studies may share it",
    )
    recipe: dict[str, Any] = Field(description="what all arms share; output, corpus and seed are the study's")
    corpora: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    students: dict[str, dict[str, object]] = Field(default={"student": {}}, min_length=1)
    arms: dict[str, dict[str, object]] = Field(min_length=1)
    baseline: str = "fixed_kd"
    split: Literal["validation", "test"] = "test"
    test_also: list[str] = Field(
        default=[],
        description="corpora whose split of the same name every run is scored on, too; no run trains on them",
    )
    average_over: Literal["clips", "languages"] = Field(
        "clips", description="languages: each language counts alike, however many clips it has"
    )
    cap_errors: bool = Field(
        False,
        description="compare arms with at most as many errors in a clip as its reference is long, so that a few looping clips do not decide; rates are "
        "also given uncapped",
    )
    groups: dict[str, list[str]] = Field(default={}, description="languages that are also reported together, by a name")
    comparisons: dict[str, list[str]] = Field(
        default={}, description="arms that an arm is compared with besides the baseline"
    )
    primary: list[Contrast] = Field(
        default=[], description="the comparisons that the study is about; their p-values are adjusted together"
    )
    margin: float | None = Field(
        None, gt=0, description="margin of equivalence, in points of CER: smaller differences count as none"
    )
    keep_students: bool = Field(False, description="keep every arm's student, about 200 MB each for Whisper base")

    @field_validator("arms", "students")
    @classmethod
    def _plain_names(cls, named: dict[str, object]) -> dict[str, object]:
        for name in named:
            if not PLAIN.fullmatch(name):
                raise ValueError(f"name {name!r} becomes a folder; expected letters, digits and any of . _ + -")
        return named

    @model_validator(mode="after")
    def _names_its_arms(self) -> Study:
        named = [("baseline", self.baseline)]
        named += [("comparisons", arm) for one, others in self.comparisons.items() for arm in (one, *others)]
        named += [("primary", arm) for contrast in self.primary for arm in (contrast.arm, contrast.against)]
        for key, arm in named:
            if arm not in self.arms:
                raise ValueError(f"{key} {arm!r} is not an arm{did_you_mean(arm, self.arms)}")
        for name, codes in self.groups.items():
            if name == "all":
                raise ValueError("groups 'all' is the name of all languages together; choose another")
            for code in codes:
                try:
                    known = language_code(code)
                except UserError as error:
                    raise ValueError(f"groups {name!r} names {error}") from None
                if known != code:
                    raise ValueError(f"groups {name!r} names {code!r}; expected the code {known!r}")
        for corpus in [*self.corpora, *self.recipe.get("more_corpora", [])]:
            if corpus in self.test_also:
                raise ValueError(f"test_also names {corpus!r}, which runs are trained on; leave it out")
        for contrast in self.primary:
            if contrast.corpus not in self.corpora:
                raise ValueError(
                    f"primary names corpus {contrast.corpus!r}, which is not among the study's{did_you_mean(contrast.corpus, self.corpora)}"
                )
        return self

    def compared_with(self, arm: str) -> list[str]:
        """The arms that an arm is compared with: the baseline first, then those named for it."""
        primary = [c.against for c in self.primary if c.arm == arm]
        others = dict.fromkeys([self.baseline, *self.comparisons.get(arm, []), *primary])
        return [other for other in others if other != arm]


@dataclass(frozen=True)
class Trial:
    """One run of a study."""

    student: str
    corpus: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder inside the study's."""
        return f"{self.student}/{folder_of(self.corpus)}/{self.arm}/seed-{self.seed}"

    def command(self, file: Path) -> str:
        """The command that runs it alone, on any machine that sees the study's folder."""
        options = ["--student", self.student, "--corpus", self.corpus, "--arm", self.arm, "--seed", str(self.seed)]
        return shlex.join(["workbench", "study", str(file), *options])


def folder_of(corpus: str) -> str:
    """Name of a corpus's folder: its own if it has one, or the last part of its path and a hash of the whole."""
    if PLAIN.fullmatch(corpus):
        return corpus
    return f"{Path(corpus.removeprefix('hf:')).stem}-{cache_key(corpus, 8)}"


def load_study(path: Path) -> Study:
    """Read a study, a file or a shipped one's name; raises UserError in one line for whatever cannot be carried out, every arm's recipe included."""
    path = find_recipe(path, "study")
    content = read_yaml(path, "study")
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UserError(f"{path}: unknown key {field!r}{did_you_mean(field, Study.model_fields)}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {field + ': ' if field else ''}{message[0].lower()}{message[1:]}") from None
    if study.prepare is not None:
        prepare = path.parent / study.prepare
        load_recipe(prepare)
        study = study.model_copy(update={"prepare": prepare})
    for trial in trials(study):
        arm_recipe(study, trial, str(path))
    return study


def trials(study: Study) -> list[Trial]:
    """All runs, seed by seed and corpus by corpus with the baseline first, so that an early table can compare."""
    arms = sorted(study.arms, key=lambda name: name != study.baseline)
    return [
        Trial(student, corpus, arm, seed)
        for student in study.students
        for seed in study.seeds
        for corpus in study.corpora
        for arm in arms
    ]


def arm_recipe(study: Study, trial: Trial, where: str = "study") -> Recipe:
    """The recipe of one run."""
    content = copy.deepcopy(study.recipe)
    content |= {"output": str(study.output / trial.name), "corpus": trial.corpus, "seed": trial.seed}
    if study.prepare is not None:
        use_current_names(content, f"{where}: arm {trial.arm!r}")
        content.setdefault("student", {})["init_from"] = str(initial_student(study))
    for overrides in (study.students[trial.student], study.arms[trial.arm]):
        for key, value in overrides.items():
            override(content, key, copy.deepcopy(value), f"{where}: arm {trial.arm!r}")
    return parse_recipe(content, f"{where}: arm {trial.arm!r}")


def initial_student(study: Study) -> Path:
    """Where the prepared student is."""
    assert study.prepare is not None  # noqa: S101  asked for only where it is
    return load_recipe(study.prepare).output / "student"
