"""Distil speech recognisers with adaptive loss weighting, and prove what the student is worth.

Importing this package loads neither torch nor transformers; its functions do when they are called.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported; see export/edge/no_telemetry.py

__version__ = "0.1.0"

if TYPE_CHECKING:
    from workbench.api import (
        Bundle,
        ExportOptions,
        Measurement,
        MeasureOptions,
        Run,
        distill,
        export,
        load,
        measure,
        read_audio,
    )
    from workbench.core.errors import UserError

__all__ = [
    "Bundle",
    "ExportOptions",
    "MeasureOptions",
    "Measurement",
    "Run",
    "UserError",
    "distill",
    "export",
    "load",
    "measure",
    "read_audio",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that `import workbench` stays quick."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from workbench import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
