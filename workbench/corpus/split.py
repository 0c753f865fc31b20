"""The split rule: a transcript decides its split, so that no sentence is both trained on and tested on."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable

TRAIN_SHARE, VALIDATION_SHARE = 0.7, 0.1  # the rest, about 0.2, is test
_ELLIPSIS = re.compile(r"\.{2,}|…")


def split_of(key: str) -> str:
    """Split that a text's `split_key` belongs to: train, validation or test.

    The hash of the key decides, so a sentence's split never changes when others are added or removed.
    """
    digest = hashlib.sha256(key.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
    if position < TRAIN_SHARE:
        return "train"
    return "validation" if position < TRAIN_SHARE + VALIDATION_SHARE else "test"


def split_key(text: str, language: str = "en") -> str:
    """What two transcripts must share to count as the same sentence: the text under Whisper's own normalizer.

    Frozen: it decides splits, and a sentence that changed its split would be tested on after it was trained on. Scoring has
    normalizers of its own (workbench.text.normalizers), which may change.

    Args:
        text: a transcript.
        language: Whisper's code; English has spelling and number rules, every other language the basic ones.

    Returns:
        The normalized text; empty if nothing but punctuation was written.
    """
    return _whisper_normalizer(language == "en")(_ELLIPSIS.sub(" ", text)).strip()


@functools.cache
def _whisper_normalizer(english: bool) -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    from workbench.text.normalizers import spelling_table

    normalizer: Callable[[str], str] = (
        EnglishTextNormalizer(json.loads(spelling_table().read_text("utf-8"))) if english else BasicTextNormalizer()
    )
    return normalizer
