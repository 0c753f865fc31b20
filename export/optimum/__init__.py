"""Hugging Face Optimum's ONNX package in its own environment, since it needs an older transformers than ours.

`environment.py` finds or creates it; `graphs/merged_by_optimum.py` exports the merged decoder in it. `transcribe.py` and
`export_decoder.py` run inside it and import nothing from the workbench. Why it is separate, and when it can go:
docs/decisions/0021-optimum-apart.md.
"""
