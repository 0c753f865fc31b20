"""Silero's speech detector, a copy of which is in each bundle: its file is in silero-vad's wheel."""

from __future__ import annotations

import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

log = logging.getLogger("workbench")
FILE = "silero_vad_16k_sequence.onnx"  # MIT licence


def silero_data() -> Path | None:
    """Where silero-vad keeps its networks; None where it is not installed. Importing it would load torchaudio and set the number of threads."""
    found = find_spec("silero_vad")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "data"


def copy_detector(graphs: Path) -> str | None:
    """Put the detector beside a bundle's graphs, for recordings and streams; returns its name in the bundle."""
    data = silero_data()
    if data is None:
        log.warning("silero-vad is not installed: the bundle's own runtime will only take utterances of up to 30 s")
        return None
    shutil.copyfile(data / FILE, graphs / "speech_detector.onnx")
    return "onnx/speech_detector.onnx"
