"""Recognisers with a CTC head: wav2vec2, HuBERT, WavLM and Parakeet, and Whisper encoders with a head of their own."""
