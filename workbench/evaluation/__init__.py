"""Transcripts of a split, how right they are, and whether one way of training is better than another."""
