"""The seam between training and the families of recognisers: all that differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench.audio import Wave
from workbench.vocabulary import Vocabulary

IGNORED = -100  # label at positions without a loss, as in transformers


@dataclass(frozen=True)
class Tokens:
    """Decoder inputs and labels of a batch under teacher forcing."""

    inputs: Tensor  # int64 [utterances, tokens]: prompt, then the transcript
    labels: Tensor  # int64 [utterances, tokens]: transcript, then the end; IGNORED elsewhere

    def to(self, device: torch.device) -> Tokens:
        """Copy to a device."""
        return Tokens(self.inputs.to(device), self.labels.to(device))

    def labelled(self) -> Tensor:
        """Positions with a loss in the flattened batch, in order of utterance and position. -> int64 [labels]"""
        return (self.labels != IGNORED).flatten().nonzero()[:, 0]


@dataclass(frozen=True)
class Transcript:
    """What a model wrote, and how sure it was."""

    text: str
    log_probability: float  # mean over the tokens written, the end included


class Family(Protocol):
    """A checkpoint of some family: its features and tokens, and how its models are run."""

    name: str
    folder: Path
    config: Any  # transformers configuration
    end: int  # id that ends a transcript
    suppressed: list[int]  # ids never written
    suppressed_first: list[int]  # ids not written first
    vocabulary: Vocabulary | None  # which tokens the models know, if not all
    window_seconds: float  # length that a stock checkpoint reads every clip at
    own_margin: float | None  # seconds of silence after a clip, of a checkpoint that reads clips at their own length

    def load(self) -> Any:
        """Load the weights in fp32 on the CPU."""
        ...

    @property
    def silence(self) -> float:
        """Seconds of silence after a clip that the checkpoint was trained to hear, up to its window: all of it for a stock one."""
        ...

    def heard(self, waves: Sequence[Wave]) -> float:
        """Seconds that the checkpoint was trained to hear of waves: the longest and the silence after it, up to its window."""
        ...

    def features(self, waves: Sequence[Wave], seconds: float, device: torch.device | str = "cpu") -> Tensor:
        """Pad waves with silence to `seconds` and compute features. -> [clips, mels, frames]"""
        ...

    def spectrum(self, padded: Tensor) -> Tensor:
        """Features of waves padded to one length. [clips, samples] -> [clips, mels, frames]"""
        ...

    def tokens(self, texts: Sequence[str], languages: Sequence[str]) -> Tokens:
        """Tokenize transcripts for teacher forcing."""
        ...

    def encode(self, model: Any, features: Tensor, heard: Tensor | None = None, checkpointing: bool = False) -> Tensor:
        """Encoder states at any length, of the positions that are `heard`. -> [clips, positions, width]"""
        ...

    def logits(
        self,
        model: Any,
        states: Tensor,
        tokens: Tokens,
        labelled: Tensor | None = None,
        heard: Tensor | None = None,
        checkpointing: bool = False,
        early: int | None = None,
    ) -> Tensor:
        """Logits at the labelled positions, in order of utterance and position. -> [labels, vocabulary]

        With `early` [2 * labels, vocabulary]: those after that decoder layer come last.
        """
        ...

    def hidden(
        self, model: Any, states: Tensor, tokens: Tokens, labelled: Tensor | None = None, heard: Tensor | None = None
    ) -> Tensor:
        """What the output projection is given at the labelled positions. -> [labels, width]"""
        ...

    def narrowed(self, vocabulary: Vocabulary) -> Family:
        """The same family for models that know only some of the tokens, by numbers of their own."""
        ...

    def special_tokens(self) -> list[int]:
        """Ids that every transcript may need."""
        ...

    def token_limit(self, seconds: float, language: str) -> int:
        """Most tokens that a transcript of a clip of this length may have."""
        ...

    def decode(self, model: Any, states: Tensor, seconds: Sequence[float], languages: Sequence[str]) -> list[str]:
        """Transcribe encoder states."""
        ...

    def transcribe(
        self, model: Any, states: Tensor, seconds: Sequence[float], languages: Sequence[str], beams: int = 1
    ) -> list[Transcript]:
        """Transcribe encoder states, greedily or with a beam."""
        ...

    def languages(self, model: Any, states: Tensor) -> list[tuple[str, float]]:
        """Likeliest language of each clip and its probability."""
        ...
