"""One precision of a bundle under the standard names, for runtimes that find graphs by name or cannot mix precisions."""

from __future__ import annotations

import tempfile
from collections.abc import Container
from pathlib import Path

from export.edge.bundle.manifest import Manifest
from export.graphs.names import GRAPH_FILES


def is_found(manifest: Manifest, precision: str, known: Container[str]) -> bool:
    """Whether a runtime finds a precision's graphs by its own naming; a packed bundle has only the standard names."""
    return precision in known and not manifest.packed_for


class BundleView:
    """A temporary folder of links to a bundle's files; it lasts as long as this object."""

    def __init__(self, manifest: Manifest, precision: str, graphs: str = "onnx") -> None:
        """Link everything; `graphs` is the subfolder for the graphs that Hugging Face's runtimes read."""
        self._temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name) / "bundle"
        (self.folder / graphs).mkdir(parents=True)
        for path in manifest.folder.resolve().iterdir():
            if path.is_file():
                (self.folder / path.name).symlink_to(path)
        parts = ("ctc",) if manifest.has_ctc_head else ("encoder", "decoder")
        for part in parts:
            (self.folder / graphs / GRAPH_FILES[part]).symlink_to(manifest.graph(part, precision))
