"""A Whisper with a reduced vocabulary: its tied matrix keeps only some rows, and is restored to be saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from workbench.models.vocabulary import Vocabulary
from workbench.models.whisper.forward.layers import decoder_of

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


def narrow_model(model: WhisperForConditionalGeneration, vocabulary: Vocabulary) -> Tensor:
    """Cut a Whisper's tied matrix down to the kept rows, in place; returns the whole matrix [vocabulary, width]."""
    whole = decoder_of(model).embed_tokens.weight.detach().clone()
    padding_id = model.config.pad_token_id
    assert padding_id is not None  # noqa: S101  check_checkpoint wants a token
    padding = vocabulary.index_of(padding_id)
    _replace_matrix(model, whole[vocabulary.ids.to(whole.device)], None if padding < 0 else padding)
    return whole


@contextmanager
def widened(model: WhisperForConditionalGeneration, vocabulary: Vocabulary, whole: Tensor) -> Iterator[None]:
    """Temporarily give a narrowed Whisper its whole matrix, to save it; `whole` is what `narrow_model` returned."""
    narrow = decoder_of(model).embed_tokens
    full = whole.clone()
    full[vocabulary.ids.to(full.device)] = narrow.weight.detach().to(full.device)
    unknown = torch.ones(len(full), dtype=torch.bool)
    unknown[vocabulary.ids] = False
    generation = model.generation_config
    suppress_tokens = generation.suppress_tokens
    generation.suppress_tokens = sorted({*(suppress_tokens or []), *unknown.nonzero()[:, 0].tolist()})
    _replace_matrix(model, full, model.config.pad_token_id)
    try:
        yield
    finally:
        generation.suppress_tokens = suppress_tokens
        decoder_of(model).embed_tokens = narrow
        model.proj_out.weight, model.proj_out.out_features = narrow.weight, len(narrow.weight)
        model.config.vocab_size = len(narrow.weight)


def _replace_matrix(model: WhisperForConditionalGeneration, weight: Tensor, padding: int | None) -> None:
    embedding = nn.Embedding(len(weight), weight.shape[1], padding_idx=padding, _weight=weight)
    decoder_of(model).embed_tokens = embedding
    model.proj_out.weight, model.proj_out.out_features = embedding.weight, len(weight)
    model.config.vocab_size = len(weight)
