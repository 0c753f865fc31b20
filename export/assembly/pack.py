"""The part of a bundle that one runtime needs, in one precision: what is copied to a device."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from export.bundle.card import write_card
from export.bundle.inspection import changed_runtime, check_names
from export.bundle.manifest import BUNDLE, open_manifest, write_manifest
from export.edge.bundle.content import Content, Measured, MeasuredCorpus
from export.edge.bundle.manifest import BundleError
from export.graphs.names import GRAPH_FILES
from export.verification.clients import client_module
from workbench.core.errors import UserError
from workbench.core.locks import output_lock
from workbench.core.ownership import check_replaceable, replacing

log = logging.getLogger("workbench")


def pack(bundle: Path, output: Path, client: str, precision: str = "", overwrite: bool = False) -> Path:
    """Copy the part of a bundle that a runtime needs; it is itself a bundle, with the verification and measurement of that part.

    Args:
        bundle: a whole bundle.
        output: folder to write.
        client: name of the runtime.
        precision: one of the bundle's; the last by default, which is its smallest as `export` is usually called.
        overwrite: replace an existing folder.

    Returns:
        The folder.

    Raises:
        UserError: the bundle is damaged or has no such precision, the runtime is unknown, or the folder exists.
    """
    manifest = open_manifest(bundle)
    needs = client_module(client)
    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists; choose another -o, or add --overwrite")
    if output.resolve() == bundle.resolve():
        raise UserError(f"{output}: is the bundle itself; choose another -o")
    check_replaceable(output, BUNDLE, [bundle])
    precision = precision or manifest.precisions[-1]
    try:
        check_names(manifest)
        # under their fp32 names, whatever the precision, so that no runtime needs to be given the precision
        graphs = {f"onnx/{GRAPH_FILES[part]}": manifest.graph(part, precision) for part in needs.GRAPHS}
        files = {name: manifest.path(name) for name in needs.FILES if (bundle / name).is_file()}
        # it reads sound files even where another runtime transcribes
        runtime = [name for name in manifest.content["files"] if name.startswith("edge/")]
        copied = {**files, **graphs, **{name: manifest.path(name) for name in runtime}}
        manifest.check([path.relative_to(bundle.resolve()).as_posix() for path in copied.values()])
    except BundleError as error:
        raise UserError(str(error)) from None
    if changed := changed_runtime(manifest):
        log.warning("%s: edge/ is of another version, or was changed: %s; it is packed as it is", bundle, ", ".join(changed))  # fmt: skip
    content: Content = {**manifest.content, "packed_for": client}
    content["precisions"] = {precision: {part: f"onnx/{GRAPH_FILES[part]}" for part in needs.GRAPHS}}
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
    with output_lock(output), replacing(output, BUNDLE) as folder:
        for name, source in copied.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
        if content.get("speech_detector") not in files:
            content["speech_detector"] = None
        write_card(folder, content)
        write_manifest(folder, content)
    return output


def _of_precision(measured: MeasuredCorpus, precision: str) -> list[Measured]:
    return [system for system in measured["systems"] if system["precision"] == precision]
