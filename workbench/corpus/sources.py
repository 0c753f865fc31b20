"""Where a corpus comes from: a built-in one, a manifest, or a Hugging Face dataset."""

from __future__ import annotations

from pathlib import Path

from workbench.audio import LONGEST_SECONDS
from workbench.corpus.hub import read_dataset
from workbench.corpus.manifests import read_manifest
from workbench.corpus.utterance import SPLITS, Utterance
from workbench.errors import UserError, nearest

BUILT_IN = {"prompts-en": Path(__file__).parent / "prompts-en"}


def open_corpus(source: str, split: str, limit: int | None = None) -> list[Utterance]:
    """Open one split of a corpus.

    Args:
        source: a built-in name (`prompts-en`), the path of a manifest or of a folder that holds one, or `hf:ID[:CONFIG]`.
        split: train, validation or test.
        limit: at most this many utterances, the first ones.

    Raises:
        UserError: no such corpus or split, an unusable line, or a clip longer than Whisper's 30 s window.
    """
    if split not in SPLITS:
        raise UserError(f"corpus split {split!r}{nearest(split, SPLITS)}")
    if source.startswith("hf:"):
        utterances = read_dataset(source.removeprefix("hf:"), split, limit)
    else:
        path = BUILT_IN.get(source, Path(source).expanduser())
        if source not in BUILT_IN and not path.exists():
            raise UserError(f"corpus {source!r}: neither a path nor a built-in corpus{nearest(source, BUILT_IN)}")
        utterances = [u for u in read_manifest(path) if u.split == split][:limit]
    if not utterances:
        raise UserError(f"corpus {source!r}: its split {split!r} is empty")
    for utterance in utterances:
        if utterance.seconds > LONGEST_SECONDS:
            raise UserError(
                f"{utterance.name}: lasts {utterance.seconds:,.1f} s, expected at most {LONGEST_SECONDS:.0f} s; "
                "split it into utterances first"
            )
    return utterances
