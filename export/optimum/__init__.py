"""Hugging Face Optimum's ONNX package in an environment of its own, since it wants an older transformers than ours.

`environment.py` finds or makes it, `graphs/merged_by_optimum.py` has the merged decoder exported there. `transcribe.py` and `export_decoder.py` run in it:
they import nothing of the workbench. Why it is apart, and when it goes away: docs/decisions/0021-optimum-apart.md.
"""
