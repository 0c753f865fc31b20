"""Corpora: every source of speech, read into one record type, `Utterance`."""

from workbench.corpus.sources import open_corpus
from workbench.corpus.utterance import SPLITS, Utterance

__all__ = ["SPLITS", "Utterance", "open_corpus"]
