"""A recipe: everything that decides a distillation run, in one YAML file."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from workbench.config.additions import (
    DecoderMatchingRecipe,
    IntermediateCtcRecipe,
    MixupRecipe,
    OracleTeacherRecipe,
    QuantizationRecipe,
    TeacherAdapterRecipe,
)
from workbench.config.base import Section
from workbench.config.named_corpora import is_dataset
from workbench.config.renamed import current_key, use_current_names
from workbench.config.sections import (
    TARGETS_OF,
    AugmentRecipe,
    DivergenceRecipe,
    OnPolicyRecipe,
    Stage,
    StreamRecipe,
    StudentRecipe,
    TargetsRecipe,
    TrailingSilenceRecipe,
)
from workbench.config.shipped import find_recipe
from workbench.config.weightings import earlier_names, inactive_reason, looks_ahead, needs_uncertainty
from workbench.core.errors import UserError, did_you_mean
from workbench.core.files import read_yaml, write_text

# sections within a stage
STAGE_SECTIONS: dict[str, type[Section]] = {
    "divergence": DivergenceRecipe,
    "on_policy": OnPolicyRecipe,
    "decoder_matching": DecoderMatchingRecipe,
    "mixup": MixupRecipe,
    "intermediate_ctc": IntermediateCtcRecipe,
    "teacher_adapter": TeacherAdapterRecipe,
    "oracle_teacher": OracleTeacherRecipe,
    "quantization": QuantizationRecipe,
}


class Recipe(Section):
    """A distillation run."""

    FREE: ClassVar = ("output", "checkpoint_minutes", "keep_checkpoints", "loader_workers", "trackers")
    output: Path = Field(description="run folder")
    teacher: str = "whisper-base"
    more_teachers: list[str] = Field(default_factory=list, description="further teachers with the same tokenizer")
    teacher_weights: Literal["mean", "best", "softmax"] | list[float] = Field(
        "mean",
        description="weights of the teachers in the distillation loss: equal, only the one with the lowest validation WER, "
        "softmax of -WER in points, or a list of numbers",
    )
    corpus: str = "prompts-en"
    more_corpora: list[str] = Field(
        default_factory=list, description="corpora whose training split is added; validation stays that of `corpus`"
    )
    max_clips: int | None = Field(None, ge=1, description="at most this many utterances of each split of `corpus`")
    stream: StreamRecipe | None = None
    augment: AugmentRecipe = AugmentRecipe()
    student: StudentRecipe = StudentRecipe()
    trailing_silence: TrailingSilenceRecipe = TrailingSilenceRecipe()
    targets: TargetsRecipe = TargetsRecipe()
    stages: dict[str, Stage] = Field(min_length=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="keep a moving average of the student with this decay, and validate and save it instead of the student",
    )
    seed: int = 1
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    checkpoint_minutes: float = Field(3.0, gt=0)
    keep_checkpoints: int = Field(
        1, ge=1, description="how many of the newest checkpoints are kept, besides the best student"
    )
    loader_workers: int | None = Field(
        None, ge=0, description="processes that prepare batches ahead; by default none on a CPU, four per GPU"
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _shared_out(self) -> Recipe:
        if isinstance(self.teacher_weights, list) and len(self.teacher_weights) != 1 + len(self.more_teachers):
            raise ValueError(
                f"teacher_weights has {len(self.teacher_weights)} numbers for {1 + len(self.more_teachers)} teachers"
            )
        return self

    @model_validator(mode="after")
    def _takes_effect(self) -> Recipe:
        for name, stage in self.stages.items():
            schedule = stage.schedule(stage.epochs, self.stream is not None)
            if (reason := inactive_reason(stage.weighting, schedule)) is not None:
                raise ValueError(f"stages.{name}.weighting: {reason}")
        return self

    @model_validator(mode="after")
    def _taught(self) -> Recipe:
        for name, stage in self.stages.items():
            if stage.oracle_teacher is not None and self.more_teachers:
                raise ValueError(
                    f"stages.{name}.oracle_teacher is its stage's only teacher, but more_teachers teach in every stage; leave one of them out"
                )
            if stage.teacher is None:
                continue
            if stage.teacher in self.more_teachers:
                raise ValueError(
                    f"stages.{name}.teacher: {stage.teacher!r} is one of more_teachers, which teach in every stage; remove it from one of them"
                )
            if stage.ignores_targets and not stage.encoder_matching and not stage.runs_teacher:
                raise ValueError(
                    f"stages.{name}.teacher would have no effect: the stage learns from the labels alone; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _targets_fit(self) -> Recipe:
        for name, stage in self.stages.items():
            # Annealing-KD brings its own divergence
            annealing = stage.weighting["name"] == "annealing_kd"
            divergence = "logit_mse" if annealing else stage.divergence.name
            kinds = TARGETS_OF[divergence]
            if annealing and stage.divergence.match_gradient:
                raise ValueError(
                    f"stages.{name}.divergence: annealing_kd has a divergence of its own, so match_gradient would have no effect; leave it out"
                )
            if stage.decoder_losses and self.targets.kind not in kinds:
                field = "weighting: annealing_kd, whose" if annealing else "divergence:"
                raise ValueError(
                    f"stages.{name}.{field} {divergence} cannot be computed from targets.kind {self.targets.kind}; "
                    f"use {' or '.join(kinds)}"
                )
        return self

    @model_validator(mode="after")
    def _augmented(self) -> Recipe:
        for name, stage in self.stages.items():
            if stage.consistency and not self.augment.changes_hearing:
                raise ValueError(
                    f"stages.{name}.consistency would have no effect: nothing in `augment` changes what the student hears; set "
                    "noise_probability, frequency_masks or time_masks"
                )
        return self

    @model_validator(mode="after")
    def _compiles(self) -> Recipe:
        for name, stage in self.stages.items():
            if self.compile and stage.decoder_matching is not None and stage.decoder_matching.attention:
                raise ValueError(
                    f"stages.{name}.decoder_matching.attention cannot be compiled; set compile: false, or attention: 0"
                )
        return self

    @model_validator(mode="after")
    def _streamed(self) -> Recipe:
        if self.stream is None:
            return self
        for name, stage in self.stages.items():
            if needs_uncertainty(stage.weighting):
                raise ValueError(
                    f"stages.{name}.weighting: {stage.weighting['name']} needs the teacher's pass over the whole corpus first, "
                    "which a stream does not allow"
                )
            if stage.max_steps is None:
                raise ValueError(
                    f"stages.{name}.max_steps is missing: the length of a stream is unknown, so a stage must end after a number of steps"
                )
        for name, stage in self.stages.items():
            if stage.teacher is not None:
                raise ValueError(
                    f"stages.{name}.teacher: a stream's windows are labelled by the recipe's teachers alone; leave it out"
                )
        for key in ("on_policy", "decoder_matching", "teacher_adapter", "oracle_teacher"):
            if any(getattr(stage, key) for stage in self.stages.values()):
                states = "encoder" if key == "oracle_teacher" else "teacher's"
                raise ValueError(
                    f"stages: {key} needs the {states} states of the whole corpus, which a stream does not allow"
                )
        if self.student.vocabulary != "all":
            raise ValueError("student.vocabulary: the tokens of a stream are not known in advance; use all")
        if self.more_corpora or self.augment.speed_factors or self.augment.concatenate_seconds:
            raise ValueError(
                "a stream takes neither more_corpora nor augment.speed_factors nor augment.concatenate_seconds"
            )
        if not is_dataset(self.corpus):
            raise ValueError(f"corpus {self.corpus!r} cannot be streamed; expected hf:ID, or leave `stream` out")
        return self

    @property
    def looks_ahead(self) -> bool:
        """Whether a stage's weighting learns its weights on speech that the run does not train on."""
        return any(looks_ahead(stage.weighting) for stage in self.stages.values())

    @property
    def teachers(self) -> list[str]:
        """All teachers, each once: the recipe's, those that teach in every stage, those of single stages."""
        own = [stage.teacher for stage in self.stages.values() if stage.teacher is not None]
        return [self.teacher, *self.more_teachers, *dict.fromkeys(name for name in own if name != self.teacher)]

    def teacher_of(self, stage: str) -> str:
        """The teacher of a stage, besides `more_teachers`."""
        return self.stages[stage].teacher or self.teacher

    def matched_keys(self, teacher: str) -> list[str]:
        """Keys that compare states of the student with a teacher's, for which both must be as wide."""
        taught = {name: stage for name, stage in self.stages.items() if self.teacher_of(name) == teacher}
        matching = {name: stage.decoder_matching for name, stage in taught.items()}
        return [
            *(f"stages.{name}.encoder_matching" for name, stage in taught.items() if stage.encoder_matching),
            *(f"stages.{name}.decoder_matching.hidden" for name, found in matching.items() if found and found.hidden),
        ]

    def save(self, path: Path) -> None:
        """Write the resolved recipe as YAML."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))

    def same_training(self, other: Recipe) -> bool:
        """Whether two recipes train the same student; where it is written and how often saved do not matter."""
        free = set(self.FREE)
        return self.model_dump(exclude=free) == other.model_dump(exclude=free)


def load_recipe(path: Path, overrides: Sequence[str] | Mapping[str, object] | None = None) -> Recipe:
    """Read a recipe, a file or a shipped one's name, and apply overrides.

    Args:
        path: the file, or the name.
        overrides: `key=value` texts (`stages.decoder.epochs=2`), or values by dotted key.

    Raises:
        UserError: no such recipe, not YAML, an unknown key (the nearest known one is named), or a value out of range.
    """
    path = find_recipe(path)
    content = read_yaml(path, "recipe")
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            plain = str(value) if isinstance(value, PurePath) else value
            override(content, key, plain, f"override {key!r}")
    else:
        for given in overrides or []:
            _parsed_override(content, given)
    return parse_recipe(content, str(path))


def parse_recipe(content: dict[str, object], where: str) -> Recipe:
    """Validate a recipe's content, which may have keys of earlier versions; raises UserError in one line."""
    use_current_names(content, where)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part not in ("list[int]", "int", "literal['all']"))
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"{where}: unknown key {field!r}{did_you_mean(field.rsplit('.', 1)[-1], _known_keys(first['loc']))}"
            ) from None
        if first["type"] == "missing":
            raise UserError(f"{where}: key {field!r} is missing") from None
        message = first["msg"].removeprefix("Value error, ")
        if isinstance(first["input"], dict):  # a rule about several keys, which its message names
            raise UserError(f"{where}: {field + ': ' if field else ''}{message}") from None
        raise UserError(f"{where}: {field} is {first['input']!r}; {message[0].lower()}{message[1:]}") from None


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section: dict[str, type[Section]] = {
        "student": StudentRecipe,
        "trailing_silence": TrailingSilenceRecipe,
        "targets": TargetsRecipe,
        "augment": AugmentRecipe,
        "stream": StreamRecipe,
        "stages": Stage,
    }
    for name, inner in STAGE_SECTIONS.items():
        if location[-2:-1] == (name,):
            return list(inner.model_fields)
    model = section.get(str(location[0]), Recipe) if len(location) > 1 else Recipe
    return list(model.model_fields)


def _parsed_override(content: dict[str, Any], given: str) -> None:
    key, equals, value = given.partition("=")
    if not equals or not key:
        raise UserError(f"override {given!r}: expected key=value, for example stages.decoder.epochs=2")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: not a date, or a number of thousands of digits
        raise UserError(f"override {given[:60]!r}: {value[:60]!r} is not a YAML value") from None
    if isinstance(parsed, str):
        # YAML 1.1 reads 5e-5 as text; whoever types a number means one
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    override(content, key, parsed, f"override {given!r}")


def override(content: dict[str, Any], key: str, value: object, where: str) -> None:
    """Set a dotted key of a recipe's content; raises UserError if a section on the way does not exist."""
    use_current_names(content, where)
    *parents, last = current_key(key, content).split(".")
    section = content
    for i, parent in enumerate(parents):
        if parent == "stages" or i == 0 or parent == "weighting" or parent in STAGE_SECTIONS:
            section = section.setdefault(parent, {})
        elif parent in section:
            section = section[parent]
        else:
            close = difflib.get_close_matches(parent, [str(k) for k in section], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{where}: no section {'.'.join(parents[: i + 1])!r}{hint}")
        if not isinstance(section, dict):
            raise UserError(f"{where}: {'.'.join(parents[: i + 1])!r} is not a section")
    if parents[-1:] == ["weighting"]:
        for earlier, name in earlier_names(section).items():
            if name == last:  # which would be given twice then
                section.pop(earlier, None)
    section[last] = value
