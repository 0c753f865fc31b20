"""Teachers and students whose cost is counted: Whispers on torch's meta device, other models on the CPU.

What the other models with a CTC head compute depends on where a batch has padding, which the meta device cannot know.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.audio.decode import SAMPLE_RATE
from workbench.config.sections import StudentRecipe
from workbench.core.files import expand_user
from workbench.models import has_ctc_head, open_family
from workbench.models.resolve import resolve_teacher
from workbench.models.whisper.exported import exported_weights
from workbench.models.whisper.family import Whisper, part_of
from workbench.models.whisper.forward.passes import decoder_logits, encode
from workbench.models.whisper.loading.checkpoint import check_checkpoint
from workbench.models.whisper.low_rank import with_low_rank_layers
from workbench.models.whisper.students import build_student

if TYPE_CHECKING:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

log = logging.getLogger("workbench")
# Whisper's published sizes, for planning where no hub is reachable: width, encoder layers, decoder layers, heads.
SIZES = {
    "tiny": (384, 4, 4, 6),
    "base": (512, 6, 6, 8),
    "small": (768, 12, 12, 12),
    "medium": (1024, 24, 24, 16),
    "large-v3": (1280, 32, 32, 20),
    "large-v3-turbo": (1280, 32, 4, 20),
}
TOKENS_A_SECOND = 3.5  # of English speech, a little above what audiobooks have


@dataclass(frozen=True)
class PlannedModel:
    """A model whose cost is counted."""

    model: Any
    family: Any  # its Family, or a WhisperShapes

    @property
    def ctc(self) -> bool:
        """Whether it has a CTC head."""
        return bool(self.family.objective == "ctc")

    @property
    def device(self) -> torch.device:
        """Where it is: `meta` for shapes alone."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def inputs(self, clips: int, seconds: float, encoded: bool = False) -> StepInputs:
        """Inputs of a step with some silent clips of one length.

        Args:
            clips: how many.
            seconds: length of each, silence after it included.
            encoded: whether encoder states are read in place of features.
        """
        tokens = max(1, round(TOKENS_A_SECOND * seconds))
        samples = round(seconds * SAMPLE_RATE)
        if self.device.type == "meta":
            mask = torch.ones(clips, round(seconds * 50), dtype=torch.bool, device="meta")
            audio = torch.zeros(clips, self.model.config.num_mel_bins, 2 * mask.shape[1], device="meta")
        else:
            import numpy as np

            audio = self.family.features([np.zeros(samples, np.float32)] * clips, seconds)
            mask = self.family.attention_mask([samples] * clips, seconds)
        if encoded:
            audio = torch.zeros(clips, mask.shape[1], self.family.width, device=self.device)
        if self.ctc:  # a prediction at each position, and no decoder
            return StepInputs(audio, mask, *_tokens(clips, 0, tokens, mask.numel(), self.device))
        return StepInputs(audio, mask, *_tokens(clips, tokens + 4, tokens + 4, clips * tokens, self.device))


@dataclass(frozen=True)
class StepInputs:
    """What `StudentModule` reads of a batch."""

    audio: Tensor  # features, or encoder states [clips, positions, width]
    attention_mask: Tensor  # bool [clips, positions]
    inputs: Tensor  # int64 [clips, decoder tokens]
    labels: Tensor  # int64 [clips, tokens]
    labelled: Tensor  # where the predictions are, int64 [predictions]


def _tokens(clips: int, inputs: int, labels: int, predictions: int, device: torch.device) -> tuple[Tensor, ...]:
    return (
        torch.zeros(clips, inputs, dtype=torch.int64, device=device),
        torch.zeros(clips, labels, dtype=torch.int64, device=device),
        torch.arange(predictions, device=device),
    )


class WhisperShapes:
    """What is needed of the family of a Whisper without a folder, on the meta device."""

    name, objective = "whisper", "cross_entropy"
    encode = staticmethod(encode)
    logits = staticmethod(decoder_logits)
    part_of = staticmethod(part_of)
    exported_weights = staticmethod(exported_weights)

    def __init__(self, config: WhisperConfig) -> None:
        self.config, self.folder = config, Path()
        self.width, self.vocabulary_size = int(config.d_model), int(config.vocab_size)

    positions, same_tokens = Whisper.positions, Whisper.same_tokens
    check_origin, check_pair, check_recipe = Whisper.check_origin, Whisper.check_pair, Whisper.check_recipe


def planned_teacher(name: str) -> PlannedModel:
    """A teacher: a checkpoint here or on the hub, or one of Whisper's published sizes without its weights.

    Raises:
        UserError: none of these.
    """
    folder = _folder_of(name)
    if folder is not None and has_ctc_head(folder):
        family: Any = open_family(folder)
        return PlannedModel(family.load(), family)
    return _whisper(meta_model(name, folder))


def planned_student(teacher: PlannedModel, recipe: StudentRecipe) -> PlannedModel:
    """The student of a recipe.

    Raises:
        UserError: its origin is of another kind than it, or lacks a layer.
    """
    origin = teacher if recipe.init_from is None else planned_teacher(recipe.init_from)
    where = f"student.init_from {recipe.init_from!r}"
    family = teacher.family
    if recipe.ctc is not None:
        family = _over_whisper(teacher.family, recipe)
        like = getattr(origin.family, "ctc_tokens", None)
        if like is not None and like.units == recipe.ctc and family.config.num_mel_bins == origin.family.mels:
            family = origin.family  # its tokens are known
    family.check_origin(origin.family, where)
    if family.objective == "cross_entropy":
        return _whisper(meta_student(origin.model, recipe))
    with origin.device:
        return PlannedModel(family.build_student(origin.model, recipe), family)


def _over_whisper(whisper: Any, recipe: StudentRecipe) -> Any:
    """The family of students with a new CTC head, whose tokens are taken to be bytes."""
    from workbench.models.ctc.whisper_family import WhisperCtc

    if recipe.ctc != "bytes":
        log.info("student.ctc: estimated with 256 tokens; how many the corpus needs is not known here")
    return WhisperCtc.over(whisper, recipe.model_copy(update={"ctc": "bytes"}), [])


def meta_model(name: str, folder: Path | None = None) -> WhisperForConditionalGeneration:
    """A Whisper model without weights, from a checkpoint or from the published sizes.

    Args:
        name: of a teacher.
        folder: its checkpoint, if that has been looked up.

    Raises:
        UserError: neither a checkpoint here nor a published size.
    """
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    folder = folder or _folder_of(name)
    if folder is not None:
        config = check_checkpoint(folder)
    else:
        width, encoder, decoder, heads = SIZES[_size(name)]
        large = _size(name).startswith("large-v3")
        config = WhisperConfig(
            d_model=width, encoder_layers=encoder, decoder_layers=decoder, encoder_attention_heads=heads,
            decoder_attention_heads=heads, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
            num_mel_bins=128 if large else 80, vocab_size=51866 if large else 51865,
        )  # fmt: skip
    with torch.device("meta"):
        return with_low_rank_layers(WhisperForConditionalGeneration(config).eval(), config)


def meta_student(source: WhisperForConditionalGeneration, recipe: StudentRecipe) -> WhisperForConditionalGeneration:
    """A student's shapes."""
    with torch.device("meta"):
        return build_student(source, recipe)


def _size(name: str) -> str:
    return name.removeprefix("openai/").removeprefix("whisper-").removesuffix(".en")


def _folder_of(name: str) -> Path | None:
    """A checkpoint's folder; None for a published size that is no folder here."""
    return resolve_teacher(name) if expand_user(name).is_dir() or _size(name) not in SIZES else None


def _whisper(model: WhisperForConditionalGeneration) -> PlannedModel:
    return PlannedModel(model, WhisperShapes(model.config))
