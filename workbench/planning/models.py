"""Teachers and students whose cost is counted: Whispers on torch's meta device, other models on the CPU.

What the other models with a CTC head compute depends on where a batch has padding, which the meta device cannot know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.audio.decode import SAMPLE_RATE
from workbench.config.sections import StudentRecipe
from workbench.core.files import expand_user
from workbench.models import has_ctc_head, open_family
from workbench.models.resolve import resolve_teacher
from workbench.models.whisper.exported import exported_weights
from workbench.models.whisper.family import part_of
from workbench.models.whisper.forward.log_mel import positions_of
from workbench.models.whisper.forward.passes import decoder_logits, encode
from workbench.models.whisper.loading.checkpoint import check_checkpoint
from workbench.models.whisper.low_rank import with_low_rank_layers
from workbench.models.whisper.students import build_student

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

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
    family: Any  # its Family; of a Whisper, what is needed of one
    width: int  # of the encoder's states
    vocabulary: int  # tokens that it predicts
    positions: Callable[[int], int]  # encoder positions of a wave of some samples

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
            audio = torch.zeros(clips, mask.shape[1], self.width, device=self.device)
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


def planned_teacher(name: str) -> PlannedModel:
    """A teacher: a checkpoint here or on the hub, or one of Whisper's published sizes without its weights.

    Raises:
        UserError: none of these.
    """
    if expand_user(name).is_dir() or _size(name) not in SIZES:
        folder = resolve_teacher(name)
        if has_ctc_head(folder):
            return _with_ctc_head(folder)
    return _whisper(meta_model(name))


def planned_student(teacher: PlannedModel, recipe: StudentRecipe) -> PlannedModel:
    """The student of a recipe; raises UserError for layers that its origin does not have."""
    origin = teacher if recipe.init_from is None else planned_teacher(recipe.init_from)
    if origin.ctc:
        model = origin.family.build_student(origin.model, recipe)
        return PlannedModel(model, origin.family, origin.width, origin.vocabulary, origin.positions)
    if recipe.ctc is None:
        return _whisper(meta_student(origin.model, recipe))
    from workbench.models.ctc.whisper_family import WhisperCtc

    if recipe.ctc != "bytes":
        log.info("student.ctc: estimated with 256 tokens; which %s it has is known only from the corpus", recipe.ctc)
    like_whisper: Any = SimpleNamespace(config=origin.model.config, folder=Path())
    family = WhisperCtc.over(like_whisper, recipe.model_copy(update={"ctc": "bytes"}), [])
    with torch.device("meta"):
        student = family.build_student(origin.model, recipe)
    return PlannedModel(student, family, family.width, family.vocabulary_size, family.positions)


def meta_model(name: str) -> WhisperForConditionalGeneration:
    """A Whisper model without weights, from a checkpoint here or from the published sizes.

    Raises:
        UserError: neither a checkpoint here nor a published size.
    """
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    size = _size(name)
    if expand_user(name).is_dir() or size not in SIZES:
        config = check_checkpoint(resolve_teacher(name))
    else:
        width, encoder, decoder, heads = SIZES[size]
        large = size.startswith("large-v3")
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


def _whisper(model: WhisperForConditionalGeneration) -> PlannedModel:
    family = SimpleNamespace(
        name="whisper", objective="cross_entropy", encode=encode, logits=decoder_logits, part_of=part_of, exported_weights=exported_weights
    )  # fmt: skip
    return PlannedModel(model, family, model.config.d_model, model.config.vocab_size, positions_of)


def _with_ctc_head(folder: Path) -> PlannedModel:
    family: Any = open_family(folder)
    model: nn.Module = family.load()
    return PlannedModel(model, family, family.width, family.vocabulary_size, family.positions)
