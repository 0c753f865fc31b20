"""A recipe: everything that decides a distillation run, in one YAML file."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from workbench.errors import UserError, nearest
from workbench.files import read_yaml, write_text


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StudentRecipe(Section):
    """Which of the teacher's layers the student keeps: their numbers, or how many, spread evenly."""

    encoder_layers: list[int] | int | Literal["all"] = "all"
    decoder_layers: list[int] | int | Literal["all"] = "all"
    vocabulary: Literal["all", "corpus"] = Field(
        "all",
        description="corpus: learn and write only tokens that its texts or the teacher's likeliest tokens there hold; "
        "a quarter of the work of a thin decoder's step",
    )
    pool_after: int | None = Field(
        None,
        ge=1,
        description="encoder layers after which neighbouring states become one, so that the rest and the decoder have half as many; "
        "the bundle does so, plain transformers does not",
    )
    encoder_variance: float | None = Field(
        None,
        gt=0.5,
        lt=1,
        description="share of the variance of each encoder product's outputs to keep, 0.99 for example: where the rest is most of its "
        "dimensions, the product becomes two thinner ones",
    )
    initial: str | None = Field(
        None, description="checkpoint that the layers are taken from instead of the teacher; named as a teacher is"
    )


class MarginRecipe(Section):
    """Silence after a clip, in seconds: the student sees a random amount in training and a fixed one in use."""

    shortest: float = Field(0.2, ge=0, le=5)
    longest: float = Field(0.9, ge=0, le=5)
    inference: float = Field(0.4, ge=0, le=5)

    @model_validator(mode="after")
    def _ordered(self) -> MarginRecipe:
        if self.shortest > self.longest:
            raise ValueError(f"shortest ({self.shortest}) is above longest ({self.longest})")
        return self


class TargetsRecipe(Section):
    """What is kept of the teacher's pass over the corpus."""

    top_k: int = Field(32, ge=1, description="logits kept a token; the rest is one bucket")
    temperature: float = Field(1.0, gt=0, description="tau of the distillation loss")
    batch_clips: int = Field(2, ge=1, description="clips in one teacher forward pass")


class DivergenceRecipe(Section):
    """Distillation loss of a label; see workbench/divergences.py."""

    name: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "logit_mse"] = "forward_kl"
    beta: float = Field(0.5, gt=0, lt=1, description="of jsd: the teacher's share of the mixture")
    alpha: float = Field(
        0.1, ge=0, lt=1, description="of the skew divergences: share of the first distribution mixed in"
    )
    teacher_scale: float = Field(1.0, gt=0, description="of logit_mse: factor of the teacher's logits")


class AugmentRecipe(Section):
    """More speech from what is there. The teacher hears new utterances (speeds, joined clips), but never noise or masks."""

    speeds: list[float] = Field(default_factory=list, description="each clip again at these speeds, 1.1 being faster")
    concatenate: float = Field(0.0, ge=0, le=30, description="also short clips joined up to this many seconds; 0: none")
    noise_share: float = Field(0.0, ge=0, le=1, description="share of the clips that the student hears in noise")
    noise_db: tuple[float, float] = Field((5.0, 30.0), description="ratio of speech to noise, from and to")
    frequency_masks: int = Field(0, ge=0, description="SpecAugment: bands blanked in each clip")
    frequency_width: int = Field(15, ge=1, description="mels of the widest band")
    time_masks: int = Field(0, ge=0, description="SpecAugment: stretches blanked in each clip")
    time_width: int = Field(40, ge=1, description="frames (10 ms) of the longest stretch")

    @field_validator("speeds")
    @classmethod
    def _sensible(cls, speeds: list[float]) -> list[float]:
        for speed in speeds:
            if not 0.5 <= speed <= 2.0 or speed == 1.0:
                raise ValueError("expected speeds from 0.5 to 2.0 other than 1.0, which is there already")
        return speeds

    @model_validator(mode="after")
    def _ordered(self) -> AugmentRecipe:
        if self.noise_db[0] > self.noise_db[1]:
            raise ValueError(
                f"noise_db goes from {self.noise_db[0]} to {self.noise_db[1]}; expected the lower one first"
            )
        return self

    @property
    def changes_hearing(self) -> bool:
        """Whether the student hears something else in every epoch, so that nothing of it can be computed once."""
        return bool(self.noise_share or self.frequency_masks or self.time_masks)


class StreamRecipe(Section):
    """Train on a corpus larger than the disk, a window of it at a time: labelled, trained on, dropped."""

    window_hours: float = Field(1.0, gt=0, description="speech that a process holds at a time, and shuffles within")


class OnPolicyRecipe(Section):
    """Micro-batches whose transcripts are the student's own; see workbench/on_policy.py."""

    method: Literal["gkd", "speculative"] = "gkd"
    share: float = Field(0.5, gt=0, le=1, description="of the micro-batches (GKD's lambda)")
    temperature: float = Field(1.0, ge=0, description="of the student's sampling; 0 is greedy")
    top_k: int = Field(25, ge=1, description="of speculative: proposals outside the teacher's k likeliest are replaced")


class Stage(Section):
    """One stage of training: what is trained, on which losses, for how long."""

    trainable: Literal["encoder", "decoder", "all"]
    epochs: int = Field(ge=1)
    steps: int | None = Field(None, ge=1, description="stop after so many optimizer steps; a stream needs it")
    learning_rate: float = Field(gt=0)
    warmup_share: float = Field(0.05, ge=0, le=0.5, description="share of the stage's steps with a rising rate")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    batch_seconds: float = Field(
        30.0, gt=0, description="audio of one optimizer step over all processes, padding included"
    )
    micro_batches: int | None = Field(
        None,
        ge=1,
        description="parts a step is computed in; by default as many as the processes and the memory ask for",
    )
    average_over: Literal["utterances", "tokens"] = Field(
        "utterances", description="whether every utterance counts alike in a step's loss, or every token"
    )
    encode_once: bool = Field(
        True, description="run a frozen encoder once over the corpus and keep its states on disk (50 x width x 2 B/s)"
    )
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory")
    encoder_matching: float = Field(0.0, ge=0, description="factor of the encoder-state loss")
    decoding: bool = Field(True, description="use task and distillation losses, weighted by `weighting`")
    weighting: dict[str, Any] = Field(default_factory=lambda: {"name": "fixed"}, validate_default=True)
    divergence: DivergenceRecipe = DivergenceRecipe()
    on_policy: OnPolicyRecipe | None = None

    @field_validator("weighting")
    @classmethod
    def _known(cls, options: dict[str, Any]) -> dict[str, Any]:
        from workbench.weighting import parse_settings

        name = options.get("name", "fixed")
        return {"name": name, **parse_settings(options).model_dump()}

    @model_validator(mode="after")
    def _some_loss(self) -> Stage:
        if not self.decoding and not self.encoder_matching:
            raise ValueError("has no loss: set encoder_matching above 0 or decoding to true")
        if self.on_policy is not None and (not self.decoding or self.average_over == "tokens"):
            raise ValueError("on_policy needs decoding: true and average_over: utterances")
        if self.trainable == "decoder" and not self.decoding:
            raise ValueError("trains the decoder, but decoding is false, so nothing would change")
        return self


class Recipe(Section):
    """A distillation run."""

    output: Path = Field(description="run folder")
    teacher: str = "whisper-base"
    more_teachers: list[str] = Field(default_factory=list, description="further teachers with the same tokenizer")
    teacher_shares: Literal["mean", "best", "softmax"] | list[float] = Field(
        "mean",
        description="of the teachers in the distillation loss: all alike, the one with the lowest validation WER alone, "
        "softmax of -WER in points, or given",
    )
    corpus: str = "prompts-en"
    more_corpora: list[str] = Field(
        default_factory=list, description="corpora whose training split is added; validation stays that of `corpus`"
    )
    limit: int | None = Field(None, ge=1, description="at most this many utterances of each split of `corpus`")
    stream: StreamRecipe | None = None
    augment: AugmentRecipe = AugmentRecipe()
    student: StudentRecipe = StudentRecipe()
    margin: MarginRecipe = MarginRecipe()
    targets: TargetsRecipe = TargetsRecipe()
    stages: dict[str, Stage] = Field(min_length=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    ema: float | None = Field(
        None, gt=0, lt=1, description="keep a moving average of the student with this decay, and let it be the result"
    )
    seed: int = 1
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    checkpoint_minutes: float = Field(3.0, gt=0)
    keep_checkpoints: int = Field(
        1, ge=1, description="how many of the newest checkpoints are kept, besides the best student"
    )
    loader_workers: int | None = Field(
        None, ge=0, description="processes that prepare batches ahead; none on a CPU, four a GPU by default"
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _shared_out(self) -> Recipe:
        if isinstance(self.teacher_shares, list) and len(self.teacher_shares) != 1 + len(self.more_teachers):
            raise ValueError(
                f"teacher_shares has {len(self.teacher_shares)} numbers for {1 + len(self.more_teachers)} teachers"
            )
        return self

    @model_validator(mode="after")
    def _streamed(self) -> Recipe:
        if self.stream is None:
            return self
        from workbench.weighting import needs_uncertainty

        for name, stage in self.stages.items():
            if needs_uncertainty(stage.weighting):
                raise ValueError(
                    f"stages.{name}.weighting: {stage.weighting['name']} asks the teacher about the whole corpus first, "
                    "which a stream has not"
                )
            if stage.steps is None:
                raise ValueError(
                    f"stages.{name}.steps is missing: a stream has no length that an epoch could be told by"
                )
        if any(stage.on_policy for stage in self.stages.values()):
            raise ValueError("stages: on_policy keeps the teacher's states of the whole corpus, which a stream has not")
        if self.student.vocabulary != "all":
            raise ValueError("student.vocabulary: a stream is not known as a whole, so its tokens are not; use all")
        if self.more_corpora or self.augment.speeds or self.augment.concatenate:
            raise ValueError("a stream takes neither more_corpora nor augment.speeds nor augment.concatenate")
        if not self.corpus.startswith("hf:"):
            raise ValueError(f"corpus {self.corpus!r} cannot be streamed; expected hf:ID, or leave `stream` out")
        return self

    def save(self, path: Path) -> None:
        """Write the resolved recipe as YAML."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))

    def same_training(self, other: Recipe) -> bool:
        """Whether two recipes train the same student; where it is written and how often saved do not matter."""
        free = {"output", "checkpoint_minutes", "keep_checkpoints", "loader_workers", "trackers"}
        return self.model_dump(exclude=free) == other.model_dump(exclude=free)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply `key=value` overrides (`stages.decoder.epochs=2`).

    Raises:
        UserError: no such file, not YAML, an unknown key (the nearest known one is named), or a value out of range.
    """
    content = read_yaml(path, "recipe", "recipes/")
    for given in overrides or []:
        _parsed_override(content, given)
    return parse_recipe(content, str(path))


def parse_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's content; raises UserError in one line."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part not in ("list[int]", "int", "literal['all']"))
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"{where}: unknown key {field!r}{nearest(field.rsplit('.', 1)[-1], _known_keys(first['loc']))}"
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
        "margin": MarginRecipe,
        "targets": TargetsRecipe,
        "augment": AugmentRecipe,
        "stream": StreamRecipe,
        "stages": Stage,
    }
    for name, inner in (("divergence", DivergenceRecipe), ("on_policy", OnPolicyRecipe)):
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
    except yaml.YAMLError:
        raise UserError(f"override {given!r}: {value!r} is not a YAML value") from None
    if isinstance(parsed, str):
        # YAML 1.1 reads 5e-5 as text; whoever types a number means one
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    override(content, key, parsed, f"override {given!r}")


def override(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a dotted key of a recipe's content; raises UserError if a section on the way does not exist."""
    *parents, last = key.split(".")
    section = content
    for i, parent in enumerate(parents):
        if parent == "stages" or i == 0 or parent in ("weighting", "divergence", "on_policy"):
            section = section.setdefault(parent, {})
        elif parent in section:
            section = section[parent]
        else:
            close = difflib.get_close_matches(parent, [str(k) for k in section], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{where}: no section {'.'.join(parents[: i + 1])!r}{hint}")
        if not isinstance(section, dict):
            raise UserError(f"{where}: {'.'.join(parents[: i + 1])!r} is not a section")
    section[last] = value
