"""Whisper checkpoints on disk: what is accepted, weights, tokenizer, and the CTranslate2 format."""
