"""A transcription server for one bundle that speaks OpenAI's API.

It needs the web packages of the extra `serve` and what the torch-free runtime needs (numpy, onnxruntime), neither torch nor transformers.
"""
