"""Blind comparison: which of two transcripts a visitor prefers, without knowing whose they are."""
