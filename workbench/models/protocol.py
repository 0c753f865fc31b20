"""The interface between training and the model families: all that differs between families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from workbench.audio.decode import Wave
from workbench.config.sections import StudentRecipe
from workbench.models.quantization import ExportedWeight, PrecisionPart
from workbench.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from workbench.config.recipe import Recipe

IGNORE_INDEX = -100  # label at positions without a loss, as in transformers
Part = Literal["encoder", "decoder", "constant"]  # of a model; what is constant is never trained
# what a model predicts, and its task loss: each next token given the ones before it, or one token or blank at each encoder position
ObjectiveName = Literal["cross_entropy", "ctc"]


@dataclass(frozen=True)
class Tokens:
    """Decoder inputs and labels of a batch under teacher forcing; without a decoder, the transcripts alone."""

    inputs: Tensor  # int64 [utterances, tokens]: prompt, then the transcript; without a decoder [utterances, 0]
    labels: Tensor  # int64 [utterances, tokens]: transcript, then the end if there is one; IGNORE_INDEX elsewhere

    def to(self, device: torch.device) -> Tokens:
        """Copy to a device."""
        return Tokens(self.inputs.to(device), self.labels.to(device))

    def labelled(self) -> Tensor:
        """Positions with a loss in the flattened batch, in order of utterance and position. -> int64 [labels]"""
        return (self.labels != IGNORE_INDEX).flatten().nonzero()[:, 0]


@dataclass(frozen=True)
class Transcript:
    """What a model wrote, and how sure it was."""

    text: str
    log_probability: float  # mean over the tokens written, the end included


class LayerOutputs(NamedTuple):
    """What some decoder layers computed at the labelled positions."""

    hidden: Tensor  # [layers, labels, width]: the residual stream after each layer
    attention: (
        Tensor  # fp32 [layers, labels, heads, positions]: logarithms of the cross-attention; empty unless asked for
    )


class Family(Protocol):
    """A checkpoint of some family: its features and tokens, and how its models are run."""

    name: str
    objective: ObjectiveName
    blank: int | None  # id of the blank; None unless the objective is `ctc`
    folder: Path
    config: object  # transformers configuration
    eos_token_id: int  # id that ends a transcript
    suppress_tokens: list[int]  # ids never written
    begin_suppress_tokens: list[int]  # ids never written as the first token
    vocabulary: Vocabulary | None  # which tokens the models have, if not all
    window_seconds: float  # length that a stock checkpoint reads every clip at
    # seconds of silence after a clip, of a checkpoint that reads clips at their own length
    trained_silence: float | None

    def __init__(self, folder: Path) -> None: ...

    @classmethod
    def check(cls, folder: Path) -> None:
        """Raise UserError for a checkpoint folder whose files are inconsistent."""
        ...

    samples_per_position: int  # of audio, for each encoder position before any pooling

    @property
    def width(self) -> int:
        """Width of the encoder's states."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Size of the checkpoint's vocabulary."""
        ...

    def load(self) -> nn.Module:
        """Load the weights in fp32 on the CPU."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a model's weights and configuration into a folder."""
        ...

    def token_and_feature_files(self) -> Sequence[Path]:
        """Files that describe tokens and features, which are copied beside a student's weights where `save` has not written them."""
        ...

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise UserError for a setting that a student of this family cannot be trained with."""
        ...

    def check_origin(self, origin: Family, where: str) -> None:
        """Raise UserError, which begins with `where`, if a student cannot begin with the layers of `origin`'s model."""
        ...

    def same_tokens(self, other: Family) -> bool:
        """Whether another checkpoint's ids stand for the same tokens, so that one can learn from the other's distribution."""
        ...

    def build_student(self, model: nn.Module, recipe: StudentRecipe) -> nn.Module:
        """Copy some of a model's layers, weights included; raises UserError for layers that it does not have."""
        ...

    def check_pair(self, student: nn.Module, teacher: nn.Module, matched: Sequence[str]) -> None:
        """Raise UserError if a student cannot learn from a teacher: other tokens, other features, or states of other width.

        Args:
            student: the student.
            teacher: the teacher.
            matched: recipe keys that compare states of both, such as `stages.encoder.encoder_matching`.
        """
        ...

    def factorize(self, model: nn.Module, features: Sequence[Tensor], share: float) -> int:
        """Factorize encoder linear layers where that is cheaper, keeping a share of their outputs' variance on some features; returns how many."""
        ...

    def empty_copy(self, model: nn.Module) -> nn.Module:
        """A model of the same shape, to be filled."""
        ...

    def positions(self, samples: int) -> int:
        """Number of encoder positions, before any pooling, that a wave of this length touches."""
        ...

    def samples(self, positions: int) -> int:
        """Most samples of a wave that has this number of encoder positions."""
        ...

    def attention_mask(self, samples: Sequence[int], seconds: float) -> Tensor | None:
        """Encoder positions that each of some clips has, read in one batch: the others are the padding of shorter clips.

        Args:
            samples: length of each clip.
            seconds: input length: each clip is followed by as much silence as the longest one.

        Returns:
            bool [clips, positions]; None where all silence is part of a clip, as Whisper was trained.
        """
        ...

    def predicted(self, tokens: Tokens, attention_mask: Tensor | None) -> Tensor:
        """Where a batch's predictions are: at labels, or with a CTC head at encoder positions.

        -> bool [utterances, tokens], or [utterances, states]
        """
        ...

    def pooling(self, model: nn.Module) -> int:
        """Encoder positions per state: 1, or 2 if neighbours are pooled."""
        ...

    def pooled(self, states: Tensor) -> Tensor:
        """States pooled as in a model with pooling 2. [clips, positions, width] -> [clips, positions / 2 rounded up, width]"""
        ...

    @property
    def silence(self) -> float:
        """Seconds of trailing silence that the checkpoint was trained with; a stock checkpoint's fill its window."""
        ...

    def input_seconds(self, waves: Sequence[Wave]) -> float:
        """Input length in seconds for some waves: the longest and the silence after it, up to the checkpoint's window."""
        ...

    @property
    def mels(self) -> int:
        """Mel bands that the features begin with; 0 for a model that reads waves."""
        ...

    def features(self, waves: Sequence[Wave], seconds: float, device: torch.device | str = "cpu") -> Tensor:
        """Pad waves with silence to `seconds` and compute features.

        -> [clips, mels, frames]; of a Parakeet with a row that marks each clip's frames; of waves [clips, 2, samples]
        """
        ...

    def spectrum(self, padded: Tensor, samples: Tensor, heard: Tensor) -> Tensor:
        """Features of waves padded to one length.

        Args:
            padded: [clips, samples].
            samples: length of each clip without the silence after it, int64 [clips].
            heard: the same with the silence that belongs to it; what follows is padding.

        Returns:
            As `features`.
        """
        ...

    def tokens(self, texts: Sequence[str], languages: Sequence[str]) -> Tokens:
        """Tokenize transcripts for teacher forcing."""
        ...

    def lacking(self, text: str) -> list[str]:
        """Letters and digits of a transcript that the vocabulary lacks, so that `tokens` leaves them out."""
        ...

    def encode(
        self, model: nn.Module, features: Tensor, attention_mask: Tensor | None = None, checkpointing: bool = False
    ) -> Tensor:
        """Encoder states at any length, of the positions that `attention_mask` marks. -> [clips, positions, width]"""
        ...

    def encode_with_early(
        self,
        model: nn.Module,
        features: Tensor,
        layer: int,
        attention_mask: Tensor | None = None,
        checkpointing: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`encode`, and in the same pass the states after an earlier layer, under the encoder's last norm where it has one.

        -> twice [clips, positions, width]
        """
        ...

    def logits(
        self,
        model: nn.Module,
        states: Tensor,
        tokens: Tokens,
        labelled: Tensor | None = None,
        attention_mask: Tensor | None = None,
        checkpointing: bool = False,
        early_layer: int | None = None,
    ) -> Tensor:
        """Logits where `predicted` says, in order of utterance and position. -> [labels, vocabulary]

        With `early_layer` [2 * labels, vocabulary]: the logits after that decoder layer come last.
        """
        ...

    def hidden(
        self,
        model: nn.Module,
        states: Tensor,
        tokens: Tokens,
        labelled: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Input of the output projection at the labelled positions. -> [labels, width]"""
        ...

    def logits_and_layers(
        self,
        model: nn.Module,
        states: Tensor,
        tokens: Tokens,
        layers: Sequence[int],
        attention: bool = False,
        labelled: Tensor | None = None,
        attention_mask: Tensor | None = None,
        checkpointing: bool = False,
    ) -> tuple[Tensor, LayerOutputs]:
        """`logits` [labels, vocabulary], and in the same pass what some decoder layers compute.

        Args:
            model: the model.
            states: encoder states [utterances, positions, width].
            tokens: inputs and labels.
            layers: numbers of the layers, in the order of the result.
            attention: whether their cross-attention is wanted too.
            labelled: flat indices of the labelled positions [labels].
            attention_mask: encoder positions that an utterance has.
            checkpointing: compute the other layers' activations again in the backward pass.
        """
        ...

    def project(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """Logits in fp32 of what `hidden` gives. [..., width] -> [..., vocabulary]"""
        ...

    def incremental_decoder(self, model: nn.Module, states: Tensor) -> Callable[[Tensor], Tensor]:
        """A function from the next tokens [clips, tokens] to the logits after the last of them, in fp32 [clips, vocabulary].

        It keeps the tokens of earlier calls in a cache.
        """
        ...

    def part_of(self, parameter: str) -> Part:
        """Which part of a model a parameter of this name belongs to."""
        ...

    def exported_weights(self, model: nn.Module, part: PrecisionPart) -> Sequence[ExportedWeight]:
        """The weights that a bundle's graphs hold in the scheme of a part; raises UserError where such a part is not exported, or not as trained."""
        ...

    def encoder_depth(self, model: nn.Module) -> int:
        """How many encoder layers a model has."""
        ...

    def decoder_depth(self, model: nn.Module) -> int:
        """How many decoder layers a model has."""
        ...

    def decoder_dropout(self, model: nn.Module, rate: float) -> AbstractContextManager[None]:
        """Temporarily run the decoder, and nothing else, with dropout."""
        ...

    def with_vocabulary(self, vocabulary: Vocabulary) -> Family:
        """The same family for models that have only some of the tokens, renumbered."""
        ...

    def prune_vocabulary(self, model: nn.Module, vocabulary: Vocabulary) -> Tensor:
        """Reduce a model to some tokens, in place; returns what `full_vocabulary` needs."""
        ...

    def full_vocabulary(self, model: nn.Module, whole: Tensor) -> AbstractContextManager[None]:
        """Temporarily give a narrowed model all its tokens, so that it can be saved; `whole` is what `prune_vocabulary` returned. Other models stay as they are."""
        ...

    def special_tokens(self) -> list[int]:
        """Ids that every transcript may need."""
        ...

    def token_limit(self, seconds: float, language: str) -> int:
        """Most tokens that the transcript of a clip of this length may have."""
        ...

    def decode(
        self,
        model: nn.Module,
        states: Tensor,
        seconds: Sequence[float],
        languages: Sequence[str],
        attention_mask: Tensor | None = None,
    ) -> list[str]:
        """Transcribe encoder states; `attention_mask` is as for `transcribe`."""
        ...

    def transcribe(
        self,
        model: nn.Module,
        states: Tensor,
        seconds: Sequence[float],
        languages: Sequence[str],
        beams: int = 1,
        attention_mask: Tensor | None = None,
    ) -> list[Transcript]:
        """Transcribe encoder states, greedily or with a beam; `attention_mask` is what the method of this name returned."""
        ...

    def languages(self, model: nn.Module, states: Tensor) -> list[tuple[str, float]]:
        """Likeliest language of each clip and its probability."""
        ...
