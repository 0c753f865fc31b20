"""Whisper, the sequence-to-sequence family."""
