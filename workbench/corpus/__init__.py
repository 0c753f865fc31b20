"""Corpora: every source of speech, read into one record type, `Utterance`."""

from workbench.corpus.sources import open_corpus, training_set
from workbench.corpus.utterance import SPLITS, Utterance

__all__ = ["SPLITS", "Utterance", "open_corpus", "training_set"]
