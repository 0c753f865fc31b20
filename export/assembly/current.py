"""Whether a folder already holds the bundle that an export would write."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import TypedDict

from export.bundle.inspection import OWN_RUNTIME
from export.edge.bundle.content import Int8
from export.edge.bundle.manifest import BundleError, Manifest, read_manifest
from workbench import __version__
from workbench.core.errors import UserError
from workbench.core.hashing import hash_json, sha256
from workbench.models import quantization as rounding

log = logging.getLogger("workbench")
EXPORT = Path(__file__).resolve().parent.parent


class ExportOptions(TypedDict):
    """What distinguishes one export of a checkpoint from another."""

    precisions: list[str]
    vocabulary: str
    int8: Int8 | None
    through: str


def is_current(output: Path, source: str, wanted: ExportOptions, overwrite: bool) -> bool:
    """Whether a folder holds this very bundle, undamaged.

    Raises:
        UserError: it holds another one, and may not be overwritten.
    """
    if not (output / "bundle.json").is_file():
        return False
    try:
        manifest = read_manifest(output)
        content = manifest.content
        same = content.get("checkpoint_sha256") == source and manifest.precisions == wanted["precisions"]
        known = content.get("vocabulary")
        same = same and ((known.get("choice") if known else "") or "") == wanted["vocabulary"]
        same = same and content.get("int8") == wanted["int8"]
        # a bundle without the field is older, and is made again: its edge/ differs
        same = same and content.get("through", "workbench") == wanted["through"]
        same = same and not manifest.packed_for
        if same and content.get("exporter") == exporter_fingerprint() and has_this_runtime(manifest):
            manifest.check()
            return True
    except BundleError:
        return False  # written by an earlier version, or damaged
    if same:
        log.info(
            "%s was exported by another version of the workbench, or contains another runtime; exporting it again",
            output,
        )
    elif not overwrite:
        raise UserError(
            f"{output}: holds a bundle of another checkpoint, another vocabulary, other precisions, another exporter or other options; choose another -o, or add --overwrite"
        )
    return False


@cache
def exporter_fingerprint() -> str:
    """SHA-256 of the code that writes graphs and bundles: what another version wrote may differ."""
    folders = [EXPORT / name for name in ("assembly", "bundle", "graphs", "quantization")]
    files = [*(path for folder in folders for path in folder.rglob("*.py")), Path(rounding.__file__)]
    return hash_json([__version__, sorted([path.name, sha256(path)] for path in files)])


def has_this_runtime(manifest: Manifest) -> bool:
    """Whether the runtime in a bundle is the one that would be put there now."""
    inside = manifest.content["files"]
    return all(
        inside.get(f"edge/{p.relative_to(OWN_RUNTIME).as_posix()}") == sha256(p) for p in OWN_RUNTIME.rglob("*.py")
    )
