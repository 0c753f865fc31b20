"""Losses of tokens and utterances: pure functions of tensors."""
