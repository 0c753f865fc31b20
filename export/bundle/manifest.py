"""A bundle's manifest: read with our own errors, extended by verification and measurement, and written with every file's checksum."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path
from typing import Unpack, cast

from export.bundle.card import CARD, card
from export.bundle.recorded import check_recorded
from export.edge.bundle.content import Content, Recorded
from export.edge.bundle.manifest import BundleError, Manifest, read_manifest
from workbench.core.atomic import recover
from workbench.core.errors import UserError
from workbench.core.files import read_json, write_json, write_text
from workbench.core.hashing import sha256
from workbench.core.ownership import IsOwnFile, OutputKind

# What the clients read besides graphs; a checkpoint that lacks one of the optional ones exports without it.
CHECKPOINT_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", "normalizer.json",
)  # fmt: skip
RECORDED = (
    "parity",
    "verification",
    "measurement",
    "search",
)  # what is added to a manifest after the graphs are written


def open_manifest(bundle: Path, check: bool = False) -> Manifest:
    """Read a bundle's manifest; with `check` inspect its files and compare each with its checksum. Raises UserError."""
    from export.bundle.inspection import inspect

    try:
        manifest = read_manifest(bundle)
        check_recorded(manifest.content)
        if check:
            recover(bundle)
            _mend_card(manifest)
            inspect(manifest)
    except BundleError as error:
        raise UserError(str(error)) from None
    except ValueError as error:
        raise UserError(f"{bundle / 'bundle.json'}: {error}; export the bundle again") from None
    return manifest


def record(bundle: Path, **found: Unpack[Recorded]) -> None:
    """Add results about a bundle to its manifest and its model card; every other file keeps its checksum.

    Raises:
        UserError: a file no longer matches the manifest, so the results may be about something else.
    """
    added = {k: v for k, v in found.items() if k in RECORDED}
    content = cast("Content", {**open_manifest(bundle, check=True).content, **added})
    text = card(content)
    content["files"] = {**content["files"], CARD: hashlib.sha256(text.encode()).hexdigest()}
    # the manifest first: the card can be rewritten from it, see `open_manifest`
    write_json(bundle / "bundle.json", content)
    write_text(bundle / CARD, text)


def _mend_card(manifest: Manifest) -> None:
    """Write the card that the manifest expects, if a kill came between the two."""
    expected, path = manifest.content["files"].get(CARD), manifest.folder / CARD
    if expected is None or (path.is_file() and sha256(path) == expected):
        return
    with contextlib.suppress(KeyError, TypeError, ValueError):  # the manifest is of another version, whose cards differ
        text = card(manifest.content)
        if hashlib.sha256(text.encode()).hexdigest() == expected:
            write_text(path, text)


def _own_files(folder: Path) -> IsOwnFile | None:
    """The files that a bundle's manifest lists, and Python's bytecode of its runtime."""
    if not (folder / "bundle.json").is_file():
        return None
    content = read_json(folder / "bundle.json", "a bundle's manifest")
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        return None
    if not isinstance(files := content.get("files"), dict):
        return None

    def own(name: str) -> bool:
        compiled = re.fullmatch(r"(edge/(?:.+/)?)__pycache__/([^/.]+)\.[^/]+\.pyc", name)
        return (
            name == "bundle.json"
            or name in files
            or (compiled is not None and f"{compiled[1]}{compiled[2]}.py" in files)
        )

    return own


BUNDLE = OutputKind("bundle", _own_files)


def write_manifest(folder: Path, content: Content) -> None:
    """Write the manifest of a new bundle last, with the checksum of every other file."""
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and p.name != "bundle.json" and "__pycache__" not in p.parts
    )
    content["files"] = {p.relative_to(folder).as_posix(): sha256(p) for p in files}
    write_json(folder / "bundle.json", content)


def size_mb(manifest: Manifest, precision: str) -> float:
    """Megabytes (10^6 bytes) that a device needs for one precision with our own runtime: its graphs and the vocabulary."""
    parts = ("ctc",) if manifest.has_ctc_head else ("frontend", "encoder", "step")
    paths = [*(manifest.graph(part, precision) for part in parts), manifest.path(manifest.vocabulary)]
    return sum(path.stat().st_size for path in paths) / 1e6
