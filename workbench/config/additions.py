"""Sections of a stage that add to its losses or change its targets, each of them left out by default."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from workbench.config.base import Section
from workbench.config.schemes import Scheme, parse_scheme


class DecoderMatchingRecipe(Section):
    """Match what the student's decoder layers compute with the teacher's; see workbench/training/teaching/decoder_matching.py."""

    hidden: float = Field(1.0, ge=0, description="factor of the hidden-state loss")
    attention: float = Field(0.0, ge=0, description="factor of the cross-attention loss")
    layers: dict[int, int] | None = Field(
        None,
        description="number of a student's decoder layer -> the teacher's; by default the layer that it was copied from, or evenly spread, "
        "the last one always to the last one",
    )

    @model_validator(mode="after")
    def _matches_something(self) -> DecoderMatchingRecipe:
        if not self.hidden and not self.attention:
            raise ValueError("hidden and attention are both 0, so it would have no effect; leave it out")
        if self.layers is not None and not self.layers:
            raise ValueError("layers is empty, so it would have no effect; leave layers out for the default map")
        return self


class IntermediateCtcRecipe(Section):
    """A loss of an earlier encoder layer of a CTC student, under the student's own head; see workbench/training/step/intermediate_ctc.py."""

    layer: int = Field(ge=0, description="number of the student's encoder layer, counted from 0; one before the last")
    weight: float = Field(
        0.3, gt=0, lt=1, description="share of this loss; the last layer's task and distillation losses have the rest"
    )
    target: Literal["labels", "self"] = Field(
        "labels",
        description="labels: CTC on the transcripts (InterCTC); self: the distribution that the student's last layer predicts at each frame",
    )


class OracleTeacherRecipe(Section):
    """A teacher of a CTC student that reads the transcript, trained before its stage; see workbench/training/oracle/teacher.py."""

    epochs: int = Field(
        20, ge=1, description="of the teacher's own training, on the student's encoder as it is before the stage"
    )
    learning_rate: float = Field(1e-3, gt=0, description="of its own training")
    width: int = Field(128, ge=4, multiple_of=4, description="width of its layers")
    hidden_text: float = Field(
        0.3, ge=0, lt=1, description="share of the transcript's tokens that it is not shown in training"
    )


class MixupRecipe(Section):
    """Micro-batches whose clips are mixed in pairs; see workbench/training/step/mixup.py."""

    fraction: float = Field(0.15, gt=0, le=1, description="share of the micro-batches that are mixed")
    alpha: float = Field(0.5, gt=0, description="the weight of a clip's own audio is drawn from Beta(alpha, alpha)")


TRAINED_WITH = ("int8", "w8", "q4")  # schemes that a student can be trained with


class QuantizationRecipe(Section):
    """Train with weights rounded as a bundle holds them; see workbench/training/quantization.py."""

    encoder: str | None = Field(
        None,
        description="the encoder's scheme as in `export --precision`: int8, w8, q4, or int8-0-5 with layers 0 and 5 in fp32; with a CTC head the whole student's",
    )
    decoder: str | None = Field(None, description="the decoder's scheme")
    reduce_range: bool = Field(
        False, description="int8 with 7 bits, as `export` writes it for CPUs without an int8 dot product"
    )

    @field_validator("encoder", "decoder")
    @classmethod
    def _known(cls, text: str | None) -> str | None:
        if text is None or (scheme := parse_scheme(text)).name == "fp32":
            return None
        if scheme.name not in TRAINED_WITH:
            raise ValueError(f"a student is trained with {', '.join(TRAINED_WITH)} alone")
        return scheme.label

    @model_validator(mode="after")
    def _rounds_something(self) -> QuantizationRecipe:
        schemes = [scheme for scheme in (self.encoder_scheme, self.decoder_scheme) if scheme is not None]
        if not schemes:
            raise ValueError("names no scheme for encoder or decoder, so it would have no effect; leave it out")
        if self.reduce_range and all(scheme.name != "int8" for scheme in schemes):
            raise ValueError("reduce_range would have no effect without int8; leave it out")
        return self

    @property
    def encoder_scheme(self) -> Scheme | None:
        """The encoder's scheme, if it is quantized."""
        return None if self.encoder is None else parse_scheme(self.encoder)

    @property
    def decoder_scheme(self) -> Scheme | None:
        """The decoder's scheme, if it is quantized."""
        return None if self.decoder is None else parse_scheme(self.decoder)


class TeacherAdapterRecipe(Section):
    """An adapter of the teacher's output that is trained along with the student; see workbench/training/teaching/teacher_adapter.py."""

    rank: int = Field(8, ge=1, description="width of the adapter")
    learning_rate: float = Field(1e-4, gt=0, description="of the adapter, with the stage's schedule")
    closeness: float = Field(
        1.0,
        ge=0,
        description="factor of the KL divergence from the student in the adapter's loss, beside the labels' cross-entropy",
    )
