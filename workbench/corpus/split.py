"""The split rule: a transcript decides its part, so that no sentence is trained on and tested on."""

from __future__ import annotations

import hashlib

TRAIN_SHARE, VALIDATION_SHARE = 0.7, 0.1  # the rest, about 0.2, is test


def split_of(normalized_text: str) -> str:
    """Part of the corpus that a normalized transcript belongs to: train, validation or test.

    The hash of the text decides, so the part of a sentence never changes when others come or go.
    """
    digest = hashlib.sha256(normalized_text.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
    if position < TRAIN_SHARE:
        return "train"
    return "validation" if position < TRAIN_SHARE + VALIDATION_SHARE else "test"
