"""Restrict a student to the tokens that a corpus needs, during training.

Embedding, projection and the loss over the vocabulary are most of a shallow decoder's step, and a language uses a fraction of
Whisper's 51,865 tokens. The student's matrix is reduced to the kept rows for training; what is saved is a whole Whisper
checkpoint again, its other rows those that it began with, and its other tokens suppressed in generation_config.json, so that
it writes in any runtime what the narrow one does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.core.errors import UserError


class Vocabulary:
    """Which tokens are kept, and their new ids."""

    def __init__(self, kept: Sequence[int], size: int) -> None:
        """Keep some of `size` tokens.

        Args:
            kept: their ids.
            size: size of the whole vocabulary.
        """
        self.ids = torch.tensor(sorted(set(kept)))
        self._place = torch.full((size,), -1)
        self._place[self.ids] = torch.arange(len(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def index_of(self, token: int) -> int:
        """New id of a kept token."""
        return int(self._place[token])

    def indices_of(self, tokens: Sequence[int]) -> list[int]:
        """New ids of those tokens that are kept."""
        return [place for place in self._place[torch.tensor(tokens, dtype=torch.long)].tolist() if place >= 0]

    def full_ids(self, places: Sequence[int]) -> list[int]:
        """Original ids of tokens given by their new ids."""
        ids: list[int] = self.ids[torch.tensor(places, dtype=torch.long)].tolist()
        return ids

    def map_ids(self, tokens: Tensor) -> Tensor:
        """New ids of tokens; negative ones (no label) stay. Raises UserError for a token that is not kept."""
        out = torch.where(tokens < 0, tokens, self._place[tokens.clamp(min=0)])
        if (missing := tokens[(out < 0) & (tokens >= 0)]).numel():
            raise UserError(
                f"student.vocabulary: token {int(missing[0])} is in no training or validation text; set it to all"
            )
        return out
