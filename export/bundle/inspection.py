"""What the workbench checks of a bundle before it opens it: nothing that bundle.json does not list, nothing that another tool would run.

A bundle's files and its bundle.json are untrusted: a checksum shows that a file arrived unchanged, not that it is harmless.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from export.edge.bundle.fields import abbreviated
from export.edge.bundle.manifest import BundleError, Manifest, check_graph
from export.edge.bundle.tokens import Detokenizer
from workbench.config.schemes import CALLED_TYPES
from workbench.core.errors import UserError
from workbench.core.files import read_object
from workbench.core.hashing import sha256
from workbench.models.ctc.checkpoint import CLASSES as CTC_CLASSES
from workbench.models.whisper.loading.checkpoint import CLASSES, check_settings

OWN_RUNTIME = Path(__file__).parents[1] / "edge"
# What `workbench export` writes; nothing else belongs in a bundle, whether listed or not.
WRITTEN = re.compile(
    r"[A-Za-z_]+\.(json|md|txt)|onnx/[\w.+-]+\.onnx|edge/(((audio|bundle|decoding)/)?\w+\.py|README\.md|requirements\.txt)"
)
# What file managers leave behind (macOS a `._NAME` beside each file on a foreign disk): no runtime reads it.
BY_OTHERS = re.compile(r"\.DS_Store|\._.+|Thumbs\.db|desktop\.ini")

HUB_CARD = "README.md"  # at the top of what was downloaded from a hub; no runtime reads it


def inspect(manifest: Manifest) -> None:
    """Check a bundle's files: names, kinds, checksums, then content. Raises BundleError or UserError at the first that is not accepted."""
    check_names(manifest)
    listed = manifest.content["files"]
    found = list(_files(manifest.folder))
    for path in found:
        name = path.relative_to(manifest.folder).as_posix()
        if name not in listed and name != "bundle.json":
            raise BundleError(f"{path}: bundle.json does not list it; {_remedy(path)}")
        manifest.path(name)  # no link, no pipe
    manifest.check()
    for path in found:
        if path.suffix == ".onnx":
            check_graph(path)
        elif path.relative_to(manifest.folder).as_posix() == manifest.vocabulary:
            Detokenizer(path)
    check_settings(manifest.folder, CTC_CLASSES if manifest.has_ctc_head else CLASSES)
    config = manifest.folder / "config.json"
    expected = CALLED_TYPES if manifest.has_ctc_head else ("whisper",)
    if config.is_file() and (kind := read_object(config, "a bundle's configuration").get("model_type")) not in expected:
        raise UserError(f"{config}: model_type is {abbreviated(kind)}; expected {' or '.join(map(repr, expected))}")


def check_names(manifest: Manifest) -> None:
    """Raise BundleError where bundle.json lists a file that `workbench export` does not write."""
    for name in manifest.content["files"]:
        if not WRITTEN.fullmatch(name):
            raise BundleError(
                f"{manifest.folder / name}: is listed in bundle.json, but is not a file that `workbench export` writes; export the bundle again"
            )


def changed_runtime(manifest: Manifest) -> list[str]:
    """Files of a bundle's `edge/` that differ from the workbench's own, are missing or are not among them."""
    inside = {name.removeprefix("edge/"): digest for name, digest in manifest.content["files"].items() if name.startswith("edge/")}  # fmt: skip
    own = {p.relative_to(OWN_RUNTIME).as_posix(): sha256(p) for p in OWN_RUNTIME.rglob("*") if p.is_file() and "__pycache__" not in p.parts}  # fmt: skip
    return sorted(f"edge/{name}" for name in {*inside, *own} if inside.get(name) != own.get(name))


def _files(folder: Path) -> Iterator[Path]:
    """Everything in a folder but folders, links to folders included."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        if here == folder:  # version control and hubs keep hidden files there
            folders[:] = [name for name in folders if not name.startswith(".")]
            files = [name for name in files if not name.startswith(".") and name != HUB_CARD]
        links = [name for name in folders if (here / name).is_symlink()]
        yield from (here / name for name in sorted([*files, *links]) if not BY_OTHERS.fullmatch(name))


def _remedy(path: Path) -> str:
    if "__pycache__" in path.parts:
        return "Python wrote it when the bundle's own runtime ran: delete all `__pycache__` folders in the bundle, and run `python -B -m edge`"
    return "move it elsewhere if it is yours, otherwise do not trust the bundle"
