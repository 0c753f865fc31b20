"""The sections of a recipe, each key with its meaning and its bounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from workbench.config.additions import (
    DecoderMatchingRecipe,
    IntermediateCtcRecipe,
    MixupRecipe,
    OracleTeacherRecipe,
    QuantizationRecipe,
    TeacherAdapterRecipe,
)
from workbench.config.base import Section
from workbench.config.weightings import StageSchedule, looks_ahead, parse_controls, parse_settings


class StudentRecipe(Section):
    """Which of the teacher's layers the student keeps: their numbers, or how many, spread evenly."""

    encoder_layers: list[int] | int | Literal["all"] = "all"
    decoder_layers: list[int] | int | Literal["all"] = "all"
    vocabulary: Literal["all", "corpus"] = Field(
        "all",
        description="corpus: train and write only the tokens of the corpus's texts and the teacher's likeliest tokens for them",
    )
    pool_after: int | None = Field(
        None,
        ge=1,
        description="number of encoder layers after which neighbouring states are averaged, so that the other layers and the decoder have half as many; bundles do so, plain transformers does not",
    )
    encoder_low_rank_variance: float | None = Field(
        None,
        gt=0.5,
        lt=1,
        description="share of the variance of each encoder linear layer's outputs to keep, for example 0.99; a layer for which a low enough rank suffices becomes two low-rank ones",
    )
    ctc: Literal["characters", "bytes", "bpe"] | None = Field(
        None,
        description="with a Whisper teacher: the student is its encoder with a CTC head and no decoder, which writes lower-case characters, "
        "bytes, or the teacher's tokens that the corpus needs",
    )
    init_from: str | None = Field(
        None, description="checkpoint whose layers are copied instead of the teacher's; named as a teacher is"
    )


class TrailingSilenceRecipe(Section):
    """Silence after a clip, in seconds: a random amount in training and a fixed one at inference."""

    train_min: float = Field(0.2, ge=0, le=5)
    train_max: float = Field(0.9, ge=0, le=5)
    inference: float = Field(0.4, ge=0, le=5)

    @model_validator(mode="after")
    def _ordered(self) -> TrailingSilenceRecipe:
        if self.train_min > self.train_max:
            raise ValueError(f"train_min ({self.train_min}) is above train_max ({self.train_max})")
        return self


class TargetsRecipe(Section):
    """What is kept of the teacher's pass over the corpus; see workbench/losses/soft_targets.py."""

    kind: Literal["top_k", "full", "sampled"] = Field(
        "top_k",
        description="what is kept for each token: the k largest logits with the rest as one bucket; all logits in fp16; or the k likeliest tokens and "
        "some drawn from the rest, whose KL is the full one in expectation",
    )
    top_k: int = Field(32, ge=1, description="logits kept per token; the rest is one bucket, or is sampled from")
    samples: int = Field(48, ge=1, description="with kind sampled: tokens drawn from the rest")
    temperature: float = Field(1.0, gt=0, description="tau of the distillation loss")
    allow_large_tail: bool = Field(
        False,
        description="with kind top_k: train even if the bucket holds more than a fifth of the teacher's probability",
    )
    teacher_batch_size: int = Field(2, ge=1, description="clips in one teacher forward pass")


# kinds of targets that each divergence can be computed from: only forward KL has an unbiased estimate from sampled tokens
TARGETS_OF: dict[str, tuple[str, ...]] = {
    "forward_kl": ("top_k", "full", "sampled"),
    **dict.fromkeys(("reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "logit_mse"), ("top_k", "full")),
}


BLANK_WEIGHT = 0.2


class DivergenceRecipe(Section):
    """Distillation loss of a label; see workbench/losses/divergences.py."""

    name: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "logit_mse"] = "forward_kl"
    beta: float = Field(0.5, gt=0, lt=1, description="for jsd: the teacher's share of the mixture")
    alpha: float = Field(
        0.1, ge=0, lt=1, description="for the skew divergences: share of the first distribution mixed in"
    )
    match_gradient: bool = Field(
        False,
        description="scale the loss so that in each micro-batch its gradient with respect to the logits is as large as forward KL's",
    )
    teacher_scale: float = Field(1.0, gt=0, description="for logit_mse: factor of the teacher's logits")
    blank_weight: float = Field(
        BLANK_WEIGHT,
        ge=0,
        le=1,
        description="[our interpretation] for CTC students: weight of a frame at which teacher and student are both sure of the blank; 1 counts all frames alike",
    )

    @model_validator(mode="after")
    def _matched_to_another(self) -> DivergenceRecipe:
        if self.match_gradient and self.name == "forward_kl":
            raise ValueError(
                "match_gradient would have no effect with forward_kl, which the others are matched to; leave it out"
            )
        return self


class AugmentRecipe(Section):
    """Augmentation. The teacher labels new utterances (speeds, joined clips), but noise and masks are applied to the student's input only."""

    speed_factors: list[float] = Field(
        default_factory=list, description="each clip again at these speeds, 1.1 being faster"
    )
    concatenate_seconds: float = Field(
        0.0, ge=0, le=30, description="also short clips joined up to this many seconds; 0: none"
    )
    noise_probability: float = Field(
        0.0, ge=0, le=1, description="share of the clips to which noise is added, in the student's input only"
    )
    snr_db: tuple[float, float] = Field((5.0, 30.0), description="signal-to-noise ratio in dB, lowest and highest")
    frequency_masks: int = Field(0, ge=0, description="SpecAugment: bands blanked in each clip")
    frequency_mask_bins: int = Field(15, ge=1, description="mels of the widest band")
    time_masks: int = Field(0, ge=0, description="SpecAugment: stretches blanked in each clip")
    time_mask_frames: int = Field(40, ge=1, description="frames (10 ms) of the longest stretch")

    @field_validator("speed_factors")
    @classmethod
    def _sensible(cls, speeds: list[float]) -> list[float]:
        for speed in speeds:
            if not 0.5 <= speed <= 2.0 or speed == 1.0:
                raise ValueError("expected speeds from 0.5 to 2.0 other than 1.0, which is there already")
        return speeds

    @model_validator(mode="after")
    def _ordered(self) -> AugmentRecipe:
        if self.snr_db[0] > self.snr_db[1]:
            raise ValueError(f"snr_db goes from {self.snr_db[0]} to {self.snr_db[1]}; expected the lower one first")
        return self

    @property
    def changes_hearing(self) -> bool:
        """Whether the student's input differs in every epoch, so that its encoder states cannot be cached."""
        return bool(self.noise_probability or self.frequency_masks or self.time_masks)


class StreamRecipe(Section):
    """Train on a corpus larger than the disk, a window of it at a time: labelled, trained on, dropped."""

    window_hours: float = Field(1.0, gt=0, description="speech that a process holds at a time, and shuffles within")


class OnPolicyRecipe(Section):
    """Micro-batches whose transcripts are the student's own; see workbench/training/teaching/on_policy.py."""

    method: Literal["gkd", "speculative"] = "gkd"
    fraction: float = Field(0.5, gt=0, le=1, description="share of the micro-batches that are on-policy (GKD's lambda)")
    temperature: float = Field(1.0, ge=0, description="temperature at which the student samples; 0 is greedy")
    top_k: int = Field(
        25, ge=1, description="with method speculative: proposals outside the teacher's k likeliest tokens are replaced"
    )


class Stage(Section):
    """One stage of training: what is trained, on which losses, for how long."""

    trainable: Literal["encoder", "decoder", "all"]
    epochs: int = Field(ge=1)
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimizer steps; required for a stream")
    learning_rate: float = Field(gt=0)
    warmup_ratio: float = Field(0.05, ge=0, le=0.5, description="share of the stage's steps with a rising rate")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_seconds: float = Field(
        30.0, gt=0, description="audio of one optimizer step over all processes, padding included"
    )
    micro_batches: int | None = Field(
        None,
        ge=1,
        description="parts a step is computed in; by default as many as the number of processes and the memory require",
    )
    average_over: Literal["utterances", "tokens"] = Field(
        "utterances", description="whether every utterance counts alike in a step's loss, or every token"
    )
    cache_encoder_states: bool = Field(
        True, description="run a frozen encoder once over the corpus and keep its states on disk (50 x width x 2 B/s)"
    )
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory")
    encoder_matching: float = Field(0.0, ge=0, description="factor of the encoder-state loss")
    decoder_losses: bool = Field(True, description="use task and distillation losses, weighted by `weighting`")
    weighting: dict[str, object] = Field(default_factory=lambda: {"name": "fixed"}, validate_default=True)
    divergence: DivergenceRecipe = DivergenceRecipe()
    on_policy: OnPolicyRecipe | None = None
    decoder_matching: DecoderMatchingRecipe | None = None
    consistency: float = Field(
        0.0,
        ge=0,
        description="factor of the KL divergence from the student's own prediction for the clip without noise or masks",
    )
    mixup: MixupRecipe | None = None
    intermediate_ctc: IntermediateCtcRecipe | None = None
    teacher_adapter: TeacherAdapterRecipe | None = None
    oracle_teacher: OracleTeacherRecipe | None = None
    quantization: QuantizationRecipe | None = None
    teacher: str | None = Field(None, description="teacher of this stage in place of the recipe's")

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher's decoder runs in the steps, so that its encoder states must be on disk."""
        return any(key is not None for key in (self.on_policy, self.decoder_matching, self.teacher_adapter))

    @property
    def last_layer_share(self) -> float:
        """Factor of the task and distillation losses of the last layer, beside which an earlier layer's loss has the rest."""
        return 1.0 if self.intermediate_ctc is None else 1 - self.intermediate_ctc.weight

    @property
    def ignores_targets(self) -> bool:
        """Whether the distillation loss is left out, or has the constant weight 0."""
        if not self.decoder_losses:
            return True
        weights = self.weighting
        by_name = weights["name"] == "fixed" and (weights["task"], weights["distillation"]) != (None, None)
        return weights["name"] == "fixed" and not weights["distillation" if by_name else "alpha"]

    def schedule(self, epochs: int, stream: bool = False, steps: int | None = None) -> StageSchedule:
        """What a weighting may know of the stage before it begins: the epochs it reaches, and its steps if they are known."""
        share = self.on_policy.fraction if self.on_policy is not None else 0.0
        return StageSchedule(epochs, steps, stream, self.decoder_losses, share)

    @field_validator("weighting")
    @classmethod
    def _known(cls, options: dict[str, object]) -> dict[str, object]:
        name = options.get("name", "fixed")
        return {"name": name, **parse_settings(options).model_dump(), **parse_controls(options)}

    @model_validator(mode="after")
    def _some_loss(self) -> Stage:
        if not self.decoder_losses and not self.encoder_matching:
            raise ValueError("has no loss: set encoder_matching above 0 or decoder_losses to true")
        if self.on_policy is not None and (not self.decoder_losses or self.average_over == "tokens"):
            raise ValueError("on_policy needs decoder_losses: true and average_over: utterances")
        if self.trainable == "decoder" and not self.decoder_losses:
            raise ValueError("trains the decoder, but decoder_losses is false, so nothing would change")
        return self

    @model_validator(mode="after")
    def _additions(self) -> Stage:
        """What is added to the losses takes effect, and can be computed."""
        if self.decoder_matching is not None and not self.decoder_losses:
            raise ValueError("decoder_matching needs decoder_losses: true, since without them the decoder does not run")
        for key in ("teacher_adapter", "oracle_teacher"):
            if getattr(self, key) is not None and self.ignores_targets:
                raise ValueError(f"{key} would have no effect: the stage has no distillation loss; leave it out")
        if self.oracle_teacher is not None and self.teacher is not None:
            raise ValueError(
                "oracle_teacher and teacher are both set, but a stage has one teacher; leave one of them out"
            )
        if self.oracle_teacher is not None and self.encoder_matching:
            raise ValueError(
                "oracle_teacher cannot be combined with encoder_matching, since it has no encoder states of its own; use a stage before it"
            )
        if self.teacher_adapter is not None and self.on_policy is not None and self.on_policy.fraction >= 1:
            raise ValueError(
                "teacher_adapter would have no effect: on_policy.fraction is 1, and on-policy micro-batches use the teacher as it is"
            )
        if self.teacher_adapter is not None and looks_ahead(self.weighting):
            raise ValueError(
                f"teacher_adapter cannot be combined with weighting {self.weighting['name']}, which looks ahead with the cached targets; "
                "use another weighting"
            )
        if self.intermediate_ctc is not None and self.trainable == "decoder":
            raise ValueError("intermediate_ctc needs trainable: encoder or all, since it is the encoder that it trains")
        for key in ("consistency", "mixup", "intermediate_ctc"):
            if getattr(self, key) and not self.decoder_losses:
                raise ValueError(f"{key} needs decoder_losses: true, since it acts on them")
        if self.mixup is not None and (self.encoder_matching or self.decoder_matching is not None):
            raise ValueError(
                "mixup cannot be combined with encoder_matching or decoder_matching: the teacher has no states of mixed clips; use stages of their own"
            )
        if self.mixup is not None and self.on_policy is not None and self.on_policy.fraction >= 1:
            raise ValueError(
                "mixup would have no effect: on_policy.fraction is 1, and on-policy micro-batches are not mixed"
            )
        if self.quantization is not None and self.quantization.encoder is None and self.trainable == "encoder":
            raise ValueError(
                "quantization rounds the decoder alone, which stays as it is in a stage with trainable: encoder; name the encoder's scheme, or set trainable: all"
            )
        if self.quantization is not None and self.quantization.decoder is not None and not self.decoder_losses:
            raise ValueError(
                "quantization.decoder would have no effect: decoder_losses is false, so the decoder does not run; leave it out"
            )
        if self.mixup is not None and self.mixup.fraction >= 1:
            for key in ("teacher_adapter", "consistency"):
                if getattr(self, key) and (self.on_policy is None or key == "teacher_adapter"):
                    raise ValueError(
                        f"{key} would have no effect: mixup.fraction is 1, and a mixed micro-batch has no clean clip"
                    )
        return self
