"""A teacher of CTC students that reads a clip's encoder states and its transcript, and gives a distribution at each encoder position.

Oracle Teacher (arXiv 2111.03664): a teacher that also reads the target text aligns it better than one that only hears the speech. Such a model
could copy the text wherever it likes, without listening: every alignment that collapses to the transcript has a CTC loss of 0, and such
targets say nothing about the speech.

Our interpretation, of the model and of the guard against that (only the paper's abstract was at hand): each position looks for tokens of
the text by cross-attention, and the text is encoded by convolutions over neighbouring tokens, without positions, as a ring: the last
token's neighbour is the first one, or the ends would tell where their neighbours stand. A position can so find a token by what it sounds
like and by its neighbours, but not by where it stands in the text, so that no alignment can be made up from the text alone. In training
some tokens are hidden besides, which have to be heard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.models.protocol import Family, Tokens

HEADS, KERNEL, CONVOLUTIONS = 4, 3, 2  # a token is encoded with two neighbours on either side


class OracleTeacher(nn.Module):
    """Encoder states and a transcript to logits at each position.

    Args:
        state_width: width of the encoder's states.
        vocabulary: size of the CTC head's vocabulary.
        width: of its own layers, a multiple of 4.
        seed: of its initial weights.
    """

    def __init__(self, state_width: int, vocabulary: int, width: int, seed: int) -> None:
        super().__init__()
        self.vocabulary, self.dropout = vocabulary, 0.0
        with torch.random.fork_rng(devices=[]):  # the same weights whatever was drawn before
            torch.manual_seed(seed)
            self.speech = nn.Sequential(nn.LayerNorm(state_width), nn.Linear(state_width, width))
            self.tokens = nn.Embedding(vocabulary + 1, width)  # the last one stands for hidden tokens
            self.context = nn.ModuleList(nn.Conv1d(width, width, KERNEL) for _ in range(CONVOLUTIONS))  # fmt: skip
            self.nothing = nn.Parameter(torch.zeros(width))  # what a position attends to where nothing is said
            self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
            self.text_norm = nn.LayerNorm(width)
            self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
            self.mixed = nn.Linear(width, width)
            self.feed_forward = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))  # fmt: skip
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, states: Tensor, labels: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Logits in fp32.

        Args:
            states: the encoder's [clips, positions, state width].
            labels: transcripts, int64 [clips, tokens], negative where there is none.
            hidden: tokens that are not shown, bool [clips, tokens]; none by default.

        Returns:
            [clips, positions, vocabulary]; those of a clip do not depend on the others, nor on padding.
        """
        with torch.autocast(states.device.type, enabled=False):
            speech = self.speech(states.float())
            text, shown = self._text(labels, hidden)
            query, key, value = (self._by_head(x) for x in (self.query(speech), self.key(text), self.value(text)))
            attended = F.scaled_dot_product_attention(query, key, value, shown[:, None, None, :])
            out = speech + self.mixed(attended.transpose(1, 2).flatten(2))
            out = out + self.feed_forward(out)
            logits: Tensor = self.head(F.dropout(self.norm(out), self.dropout) if self.dropout else self.norm(out))
        return logits

    def _text(self, labels: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encoded tokens and, first, nothing: [clips, 1 + tokens, width]; which of them a clip has: bool [clips, 1 + tokens]."""
        if not labels.shape[1]:  # empty transcripts alone: a convolution needs a row
            labels, hidden = labels.new_full((len(labels), 1), -1), None
        there = labels >= 0
        ids = labels.clamp(min=0) if hidden is None else torch.where(hidden, self.vocabulary, labels.clamp(min=0))
        side = CONVOLUTIONS * (KERNEL // 2)  # tokens by which each text goes on around the ring, before and after
        places = torch.arange(labels.shape[1] + 2 * side, device=labels.device) - side
        text = self.tokens(ids.gather(1, places % there.sum(1, keepdim=True).clamp(min=1)))
        for layer in self.context:
            mixed = layer(text.transpose(1, 2)).transpose(1, 2)
            text = text[:, KERNEL // 2 : text.shape[1] - KERNEL // 2] + F.gelu(mixed)
        nothing = self.nothing.expand(len(text), 1, -1)
        return self.text_norm(torch.cat([nothing, text], 1)), F.pad(there, (1, 0), value=True)

    @staticmethod
    def _by_head(x: Tensor) -> Tensor:
        """[clips, rows, width] -> [clips, heads, rows, width / heads]"""
        rows: Tensor = x.unflatten(2, (HEADS, -1))
        return rows.transpose(1, 2)


class _ReadsTranscripts:
    """A student's family whose logits are an oracle teacher's; the models that it is given are students, whose encoders it reads."""

    def __init__(self, family: Family, oracle: OracleTeacher, silence: float) -> None:
        self._family, self._oracle, self.silence = family, oracle, silence

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def input_seconds(self, waves: Sequence[Wave]) -> float:
        """Length of the longest wave with the silence after it."""
        return min(max(map(len, waves)) / SAMPLE_RATE + self.silence, self._family.window_seconds)

    def logits(
        self,
        model: nn.Module,  # noqa: ARG002
        states: Tensor,
        tokens: Tokens,
        labelled: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits at every position that a clip has. -> [positions of all clips, vocabulary]"""
        flat = self._oracle(states, tokens.labels).flatten(0, 1)
        if labelled is None and attention_mask is not None:
            labelled = attention_mask.flatten().nonzero()[:, 0]
        chosen: Tensor = flat if labelled is None else flat.index_select(0, labelled)
        return chosen

    @contextmanager
    def _dropping(self, rate: float) -> Iterator[None]:
        self._oracle.dropout = rate
        try:
            yield
        finally:
            self._oracle.dropout = 0.0

    def decoder_dropout(self, model: nn.Module, rate: float) -> AbstractContextManager[None]:  # noqa: ARG002
        """Temporarily drop some of what the oracle's last layer reads."""
        return self._dropping(rate)


def oracle_family(family: Family, oracle: OracleTeacher, silence: float) -> Family:
    """A student's family with the oracle's logits, so that it can be asked for targets as any teacher is.

    Args:
        family: the student's, with a CTC head.
        oracle: trained on the states of the student that its methods are given, on the same device.
        silence: seconds after each clip.
    """
    return cast(Family, _ReadsTranscripts(family, oracle, silence))
