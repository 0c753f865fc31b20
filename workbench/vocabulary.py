"""A student that knows only the tokens a corpus needs, while it is trained.

Embedding, projection and the loss over the vocabulary are most of a thin decoder's step, and a language uses a fraction of
Whisper's 51,865 tokens. The student's matrix is cut down to the kept rows for training; what is saved is a whole Whisper
checkpoint again, its other rows those that it began with, and its other tokens suppressed in generation_config.json, so that
it writes in any runtime what the narrow one does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import UserError


class Vocabulary:
    """Which tokens are kept, and the numbers they go by."""

    def __init__(self, kept: Sequence[int], size: int) -> None:
        """Keep some of `size` tokens.

        Args:
            kept: their ids.
            size: of the whole vocabulary.
        """
        self.kept = torch.tensor(sorted(set(kept)))
        self._place = torch.full((size,), -1)
        self._place[self.kept] = torch.arange(len(self.kept))

    def __len__(self) -> int:
        return len(self.kept)

    def place(self, token: int) -> int:
        """A kept token's own number."""
        return int(self._place[token])

    def places(self, tokens: Sequence[int]) -> list[int]:
        """Numbers of those tokens that are kept."""
        return [place for place in self._place[torch.tensor(tokens, dtype=torch.long)].tolist() if place >= 0]

    def widened(self, places: Sequence[int]) -> list[int]:
        """Ids of tokens by their own numbers."""
        ids: list[int] = self.kept[torch.tensor(places, dtype=torch.long)].tolist()
        return ids

    def narrow(self, tokens: Tensor) -> Tensor:
        """Own numbers of tokens; negative ids (no label) stay. Raises UserError for a token that is not kept."""
        out = torch.where(tokens < 0, tokens, self._place[tokens.clamp(min=0)])
        if (missing := tokens[(out < 0) & (tokens >= 0)]).numel():
            raise UserError(
                f"student.vocabulary: token {int(missing[0])} is in no training or validation text; set it to all"
            )
        return out


def narrow_model(model: Any, vocabulary: Vocabulary) -> Tensor:
    """Cut a Whisper's tied matrix down to the kept rows, in place; returns the whole matrix [vocabulary, width]."""
    whole: Tensor = model.model.decoder.embed_tokens.weight.detach().clone()
    padding = vocabulary.place(model.config.pad_token_id)
    _replace_matrix(model, whole[vocabulary.kept.to(whole.device)], None if padding < 0 else padding)
    return whole


@contextmanager
def widened(model: Any, vocabulary: Vocabulary, whole: Tensor) -> Iterator[None]:
    """Make a narrowed Whisper a whole one for a while, to be saved; `whole` is what `narrow_model` returned."""
    narrow = model.model.decoder.embed_tokens
    full = whole.clone()
    full[vocabulary.kept.to(full.device)] = narrow.weight.detach().to(full.device)
    unknown = torch.ones(len(full), dtype=torch.bool)
    unknown[vocabulary.kept] = False
    generation = model.generation_config
    suppressed = generation.suppress_tokens
    generation.suppress_tokens = sorted({*(suppressed or []), *unknown.nonzero()[:, 0].tolist()})
    _replace_matrix(model, full, model.config.pad_token_id)
    try:
        yield
    finally:
        generation.suppress_tokens = suppressed
        model.model.decoder.embed_tokens = narrow
        model.proj_out.weight, model.proj_out.out_features = narrow.weight, len(narrow.weight)
        model.config.vocab_size = len(narrow.weight)


def _replace_matrix(model: Any, weight: Tensor, padding: int | None) -> None:
    embedding = nn.Embedding(len(weight), weight.shape[1], padding_idx=padding, _weight=weight)
    model.model.decoder.embed_tokens = embedding
    model.proj_out.weight, model.proj_out.out_features = embedding.weight, len(weight)
    model.config.vocab_size = len(weight)
