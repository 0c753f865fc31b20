"""Greedy decoding with a draft (speculative decoding): the decoder reads several proposed tokens in one pass and keeps those that it agrees with.

The text is the greedy decoder's, token for token, which needs a decoder whose logits do not depend on how many tokens it reads in a pass. Where the
processor's matrix products round differently for one token and for several, two tokens that are nearly as likely could change places: then the draft is given up
and the clip decoded without one. A decoder whose passes differ by more than rounding, such as dynamic int8, takes no drafts
(`passes_agree`, docs/decisions/0028-drafts.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from .decoder import DTYPES, DecoderSession, Hypothesis, gives_several_logits, greedy, stopped
from .drafts import Draft
from .sessions import as_value, device_of

ROUNDING = 1e-4  # of logits, which are about 20: what passes over one token and over several may differ by
TOLERANCE = 1e-3  # of two tokens' logits, closer than which they could change places
MOST = 32  # proposed tokens that one pass checks, which bounds the memory for their logits, and the time that a bad draft takes
CHECKED = (
    2,
    8,
    MOST + 1,
)  # tokens that are read in one pass and one by one: products may be computed otherwise for other numbers of rows
POSITIONS = 50  # of the encoder's states for that


@dataclass
class DraftCounts:
    """What decoding with drafts took; counts add up over clips."""

    passes: int = 0  # of the decoder, over one token or several
    tokens: int = 0  # written, with the ends of the texts
    proposed: int = 0  # tokens that drafts proposed and the decoder read
    accepted: int = 0  # of those, what it agreed with
    given_up: int = 0  # clips that were decoded again without a draft


def greedy_with_draft(
    decoder: DecoderSession, prompt: Sequence[int], limit: int, end: int, draft: Draft, first: Callable[[], None] = lambda: None,
    counts: DraftCounts | None = None,
) -> Hypothesis:  # fmt: skip
    """What `greedy` writes of one clip, in fewer passes where a draft is right.

    Args:
        decoder: with one row, whose passes agree (`passes_agree`).
        prompt: the clip's prompt.
        limit: most tokens.
        end: as for `greedy`.
        draft: proposes the clip's tokens.
        first: as for `greedy`.
        counts: to be added to.
    """
    counts = counts or DraftCounts()
    found = _drafted(decoder, prompt, limit, end, draft, first, counts)
    if found is None:
        counts.given_up += 1
        decoder.done[:] = 0
        (found,) = greedy(decoder, [prompt], [limit], end)
    return found


def _drafted(
    decoder: DecoderSession, prompt: Sequence[int], limit: int, end: int, draft: Draft, first: Callable[[], None],
    counts: DraftCounts,
) -> Hypothesis | None:  # fmt: skip
    """Write a clip's text; None where two tokens are too close to tell which one greedy decoding would write."""
    written: list[int] = []
    unread = list(prompt)
    while True:
        # of the tokens up to the limit the last one need not be read
        proposed = _usable(draft(written), min(MOST, limit - len(written) - 1), decoder.vocabulary)
        logits = decoder.several(np.array([[*unread, *proposed]], np.int64), 1 + len(proposed))[0]
        counts.passes += 1
        counts.proposed += len(proposed)
        if not written:
            first()
        accepted = 0
        for row, guess in zip(logits, [*proposed, None], strict=True):
            token = likeliest(row)
            if token is None:
                return None
            counts.tokens += 1
            if token == end:
                return Hypothesis(written, True)
            written.append(token)
            if len(written) >= limit:
                return stopped(written)
            if token != guess:
                break
            accepted += 1
        counts.accepted += accepted
        decoder.done -= len(proposed) - accepted  # what was not agreed with is overwritten
        unread = written[-1:]


def _usable(proposed: Sequence[int], most: int, vocabulary: int) -> list[int]:
    """The first tokens of a proposal, up to one that the model does not have."""
    found: list[int] = []
    for token in proposed[: max(0, most)]:
        if not 0 <= token < vocabulary:
            break
        found.append(int(token))
    return found


def likeliest(logits: npt.NDArray[np.float32]) -> int | None:
    """The likeliest token; None if another one's logit is nearly as high, or one is not a number. logits: [vocabulary]"""
    token = int(logits.argmax())
    best = float(logits[token])
    rest = max(logits[:token].max(initial=-np.inf), logits[token + 1 :].max(initial=-np.inf))
    return token if best - float(rest) >= TOLERANCE else None


def passes_agree(step: ort.InferenceSession) -> bool:
    """Whether a step graph gives the logits of several positions, and, on this machine, the same ones as in passes over one token each.

    It is tried on random states.
    """
    if not gives_several_logits(step):
        return False
    inputs = {i.name: i for i in step.get_inputs()}
    layers, cross = sum(name.startswith("cross_k.") for name in inputs), inputs["cross_k.0"]
    generator = np.random.default_rng(0)
    shape = layers, 1, POSITIONS, cross.shape[2]
    states = [as_value(generator.normal(size=shape).astype(DTYPES[cross.type]), device_of(step)) for _ in "kv"]
    decoder = DecoderSession(step, states, max(CHECKED))
    tokens = generator.integers(0, decoder.vocabulary, (1, max(CHECKED)))
    one_by_one: list[npt.NDArray[np.float32]] = []
    for size in CHECKED:  # a decoder that fails does so in the first ones
        one_by_one += [decoder(tokens[:, [i]])[0].copy() for i in range(len(one_by_one), size)]
        decoder.done[:] = 0
        together = decoder.several(tokens[:, :size], size)[0]
        if np.abs(together - np.stack(one_by_one)).max() > ROUNDING:
            return False
    return True
