"""Distil speech recognisers with adaptive loss weighting, and prove what the student is worth.

Importing this package loads neither torch nor transformers; its modules do when they need them.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported; see export/edge/no_telemetry.py

__version__ = "0.1.0"
