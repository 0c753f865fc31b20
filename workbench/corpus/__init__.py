"""Corpora: every source of speech, read into one record type, `Utterance`."""

from workbench.corpus.sources import (
    corpus_identity,
    open_corpus,
    recipe_meta_set,
    recipe_training_set,
    same_corpus,
    scored_clips,
    training_set,
)
from workbench.corpus.utterance import META, SPLITS, Utterance

__all__ = [
    "META",
    "SPLITS",
    "Utterance",
    "corpus_identity",
    "open_corpus",
    "recipe_meta_set",
    "recipe_training_set",
    "same_corpus",
    "scored_clips",
    "training_set",
]
