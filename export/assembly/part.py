"""Which of a bundle's files one runtime needs in one precision, and what its manifest says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.bundle.inspection import check_names
from export.bundle.manifest import open_manifest
from export.edge.bundle.content import Content, Measured, MeasuredCorpus
from export.edge.bundle.manifest import BundleError, Manifest
from export.graphs.names import GRAPH_FILES
from export.verification.clients import needs_of, unreadable_reason
from workbench.core.errors import UserError


@dataclass(frozen=True)
class Part:
    """A part of a bundle, checked."""

    manifest: Manifest  # of the whole bundle
    precision: str
    files: dict[str, Path]  # by the name that each gets; graphs have their fp32 names, whatever the precision
    content: Content  # what the manifest says of this part


def open_part(bundle: Path, client: str, precision: str = "", runtime: bool = True) -> Part:
    """Find and check the part of a bundle that a runtime needs.

    Args:
        bundle: a whole bundle.
        client: name of the runtime.
        precision: one of the bundle's; the last by default.
        runtime: whether the torch-free runtime in `edge/` belongs to it.

    Raises:
        UserError: the bundle is damaged or has no such precision, or the runtime is unknown.
    """
    manifest = open_manifest(bundle)
    needs = needs_of(manifest, client)
    if needs is None:
        raise UserError(f"{bundle}: {client} does not read it: {unreadable_reason(manifest, client)}")
    precision = precision or manifest.precisions[-1]
    try:
        check_names(manifest)
        # under their fp32 names, so that no runtime needs to be given the precision
        graphs = {f"onnx/{GRAPH_FILES[part]}": manifest.graph(part, precision) for part in needs.graphs}
        files = {name: manifest.path(name) for name in needs.files if (bundle / name).is_file()}
        edge = [name for name in manifest.content["files"] if runtime and name.startswith("edge/")]
        copied = {**files, **graphs, **{name: manifest.path(name) for name in edge}}
        manifest.check([path.relative_to(bundle.resolve()).as_posix() for path in copied.values()])
    except BundleError as error:
        raise UserError(str(error)) from None
    return Part(manifest, precision, copied, _content(manifest, client, precision, needs.graphs))


def _content(manifest: Manifest, client: str, precision: str, graphs: Sequence[str]) -> Content:
    """What remains of the manifest's content."""
    content: Content = {**manifest.content, "packed_for": client}
    content["precisions"] = {precision: {part: f"onnx/{GRAPH_FILES[part]}" for part in graphs}}
    content["parity"] = {precision: (manifest.content.get("parity") or {}).get(precision)}
    if verification := content.get("verification"):
        kept = [c for c in verification["clients"] if c["client"] == client and c["precision"] == precision]
        content["verification"] = {**verification, "clients": kept, "not_installed": {}}
    if measurement := content.get("measurement"):
        others: list[MeasuredCorpus] = [
            {**other, "systems": _of_precision(other, precision)} for other in measurement.get("other_corpora", [])
        ]
        content["measurement"] = {
            **measurement,
            "systems": _of_precision(measurement, precision),
            "other_corpora": others,
        }
    return content


def _of_precision(measured: MeasuredCorpus, precision: str) -> list[Measured]:
    return [system for system in measured["systems"] if system["precision"] == precision]
