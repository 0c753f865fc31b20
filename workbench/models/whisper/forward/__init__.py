"""Whisper's forward pass: features, encoder and decoder on unpadded audio, and the layers that our code reads."""
