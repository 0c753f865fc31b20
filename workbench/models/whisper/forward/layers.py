"""The parts of transformers' Whisper that our code reads, with their types: to a type checker its own attributes are Any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar, cast, overload

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import EncoderDecoderCache, WhisperForConditionalGeneration

LayerT = TypeVar("LayerT", covariant=True)


class Attention(Protocol):
    """A WhisperAttention. Each product is an nn.Linear, or in an encoder a LowRank (models/whisper/low_rank.py)."""

    num_heads: int
    head_dim: int  # width of a head
    scaling: float  # of the queries
    dropout: float

    @property
    def q_proj(self) -> nn.Module: ...
    @property
    def k_proj(self) -> nn.Module: ...
    @property
    def v_proj(self) -> nn.Module: ...
    @property
    def out_proj(self) -> nn.Module: ...


class DecoderAttention(Attention, Protocol):
    """A decoder's attention, whose products are never factorized."""

    @property
    def q_proj(self) -> nn.Linear: ...
    @property
    def k_proj(self) -> nn.Linear: ...
    @property
    def v_proj(self) -> nn.Linear: ...
    @property
    def out_proj(self) -> nn.Linear: ...


class Layer(Protocol):
    """What a WhisperEncoderLayer and a WhisperDecoderLayer have in common."""

    self_attn_layer_norm: nn.LayerNorm
    final_layer_norm: nn.LayerNorm
    activation_fn: Callable[[Tensor], Tensor]
    dropout: float
    activation_dropout: float
    training: bool

    @property
    def self_attn(self) -> Attention: ...
    @property
    def fc1(self) -> nn.Module: ...
    @property
    def fc2(self) -> nn.Module: ...

    def __call__(self, hidden: Tensor, /, *given: Tensor | None) -> Tensor:
        """Run the layer; after the hidden states an encoder's takes a mask, a decoder's a mask, encoder states and their mask."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As in nn.Module."""
        ...

    def train(self, mode: bool = True) -> object:
        """As in nn.Module."""
        ...

    def eval(self) -> object:
        """As in nn.Module."""
        ...


class EncoderLayer(Layer, Protocol):
    """A WhisperEncoderLayer; fc1 and fc2 are nn.Linear or LowRank."""


class DecoderLayer(Layer, Protocol):
    """A WhisperDecoderLayer."""

    encoder_attn_layer_norm: nn.LayerNorm

    @property
    def self_attn(self) -> DecoderAttention: ...
    @property
    def encoder_attn(self) -> DecoderAttention: ...
    @property
    def fc1(self) -> nn.Linear: ...
    @property
    def fc2(self) -> nn.Linear: ...


class Layers(Protocol[LayerT]):
    """An nn.ModuleList of layers of one kind."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[LayerT]: ...
    @overload
    def __getitem__(self, index: int) -> LayerT: ...
    @overload
    def __getitem__(self, index: slice) -> Layers[LayerT]: ...

    def get_submodule(self, target: str) -> nn.Module:
        """As in nn.Module."""
        ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As in nn.Module."""
        ...


class Encoder(Protocol):
    """A WhisperEncoder."""

    conv1: nn.Conv1d
    conv2: nn.Conv1d
    embed_positions: nn.Embedding
    layer_norm: nn.LayerNorm

    @property
    def layers(self) -> Layers[EncoderLayer]: ...


class DecoderOutput(Protocol):
    """What a decoder returns."""

    last_hidden_state: Tensor  # [clips, tokens, width]


class Decoder(Protocol):
    """A WhisperDecoder."""

    embed_tokens: nn.Embedding
    embed_positions: nn.Embedding
    layer_norm: nn.LayerNorm

    @property
    def layers(self) -> Layers[DecoderLayer]: ...

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        *cache: EncoderDecoderCache,  # the fourth argument, whose name differs between versions
        use_cache: bool,
    ) -> DecoderOutput:
        """States of tokens that come after those in the cache."""
        ...


def as_whisper(model: nn.Module) -> WhisperForConditionalGeneration:
    """A model of this family, which Family's methods are given as nn.Module."""
    return cast("WhisperForConditionalGeneration", model)


def encoder_of(model: WhisperForConditionalGeneration) -> Encoder:
    """The encoder of a model."""
    encoder: Encoder = model.model.encoder
    return encoder


def decoder_of(model: WhisperForConditionalGeneration) -> Decoder:
    """The decoder of a model."""
    decoder: Decoder = model.model.decoder
    return decoder
