"""Speech recognition from an exported bundle with numpy and onnxruntime alone: no torch, no transformers.

This package travels inside every bundle, and is importable from the workbench as `export.edge`:

    from edge import Recognizer, read_wav
    print(Recognizer("path/of/bundle").transcribe(read_wav("speech.wav")).text)
"""

from .audio import AudioError, read_wav
from .bundle import BundleError, Manifest, read_manifest
from .recognizer import Recognizer, Transcript

__all__ = ["AudioError", "BundleError", "Manifest", "Recognizer", "Transcript", "read_manifest", "read_wav"]
