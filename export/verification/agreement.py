"""How a runtime's transcripts agree with torch's: tokens, texts, word errors, and how a difference is reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from export.edge.bundle.content import Content, FirstDifference, VerifiedClient
from export.verification.clients.protocol import Transcribed
from workbench.corpus import Utterance
from workbench.evaluation.scoring import Score

MIN_EQUAL = 0.99  # share of clips whose fp32 tokens must equal torch's
WER_BUDGET = 0.5  # allowed WER above torch's otherwise, in percentage points,
WORDS_ALLOWED = 2  # or this many additional word errors if that is more: on 24 clips one word is already 0.6 points


@dataclass(frozen=True)
class ReferenceTranscript:
    """A transcript by torch."""

    text: str
    tokens: list[int]
    capped: bool  # whether it reached the token limit
    # detokenizes with the checkpoint's tokenizer, for transcripts that stop earlier
    text_of: Callable[[Sequence[int]], str] | None = None


def first_difference(
    utterances: Sequence[Utterance], clips: Sequence[Transcribed], reference: Sequence[ReferenceTranscript], prefixes: Sequence[float]
) -> FirstDifference | None:  # fmt: skip
    """The first clip whose text differs from torch's, or failing that, whose tokens do."""
    unequal = [i for i, share in enumerate(prefixes) if share < 1]
    others = [i for i in unequal if clips[i]["text"].split() != reference[i].text.split()] or unequal
    if not others:
        return None
    return {"id": utterances[others[0]].id, "text": clips[others[0]]["text"], "torch": reference[others[0]].text}


def summary(found: VerifiedClient) -> str:
    """The result of a client and a precision in one line."""
    if found["wer"] is None:
        return f"the client did not run ({found['error']})"
    return f"{found['tokens_equal']} clips equal torch's, WER {found['wer']:.2f} % (torch {found['wer_torch']:.2f} %)"


def explain(found: VerifiedClient) -> list[str]:
    """Lines that explain why a client and a precision failed, and what to do about it."""
    first = found.get("first_difference")
    out = [f"{found['client']} {found['precision']}: {summary(found)}"]
    if threshold := found.get("threshold"):
        out.append(f"  expected: {threshold}")
    if found["wer"] is not None and found["error"]:
        out.append(f"  {found['error']}")
    elif first:
        out.append(f"  first difference, clip {first['id']}: {first['text']!r}, torch {first['torch']!r}")
    if found["wer"] is None:
        out.append(f"  to do: check whether the runtime works here; to repeat only this: --client {found['client']}")
    elif found["precision"] == "fp32" or found["error"]:
        out.append(
            f"  to do: the runtime's output differs from torch's; try a version other than {found['client']} {found['version']}, or another runtime"
        )
    else:
        out.append(
            '  to do: choose another --precision for `workbench export`, let it find one (--budget "wer<=+0.5"), or train the student on with its weights '
            "rounded so (docs/distil.md)"
        )
    return out


def expected_text(clip: Transcribed, written: ReferenceTranscript) -> str | None:
    """The text that a runtime must return, given its tokens; None if they differ from torch's or are not returned.

    If torch reached the token limit, the runtime may have stopped earlier.
    """
    tokens = clip["tokens"]
    if tokens is None:
        return None
    if list(tokens) == written.tokens:
        return written.text
    stopped = written.capped and list(tokens) == written.tokens[: len(tokens)]
    return written.text_of(tokens) if stopped and written.text_of else None


def has_other_text(clip: Transcribed, written: ReferenceTranscript) -> bool:
    """Whether a runtime returned torch's tokens but a different text: its vocabulary is not the checkpoint's."""
    expected = expected_text(clip, written)
    return expected is not None and clip["text"].split() != expected.split()


def wer_budget(content: Content) -> float:
    """Allowed WER above torch's in points: the budget of the bundle's search (`--budget`), or half a point."""
    searched = (content.get("search") or {}).get("wer_above")
    return WER_BUDGET if searched is None else float(searched)


def within_budget(found: Score, torchs: Score, points: float = WER_BUDGET) -> bool:
    """Whether a runtime's word errors exceed torch's by no more than the budget; with 0 points, not even one is allowed."""
    allowed = max(WORDS_ALLOWED, points / 100 * torchs.words) if points else 0
    return found.errors - torchs.errors <= allowed


def prefix_share(clip: Transcribed, written: ReferenceTranscript) -> float:
    """Share of torch's tokens (or characters, without tokens) before the first difference; 1 only if all are equal."""
    ours: Sequence[str | int] = clip["text"] if clip["tokens"] is None else clip["tokens"]
    theirs: Sequence[str | int] = written.text if clip["tokens"] is None else written.tokens
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    # a looping decoder stops at the token limit, and runtimes have different ones
    if same == len(ours) == len(theirs) or (written.capped and same == min(len(ours), len(theirs)) > 0):
        return 1.0
    return min(same / max(len(theirs), 1), 1 - 1e-6)
