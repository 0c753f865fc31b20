"""Recognisers with a CTC head: wav2vec2, HuBERT and WavLM, and Whisper encoders with a head of their own."""
