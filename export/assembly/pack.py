"""The part of a bundle that one runtime needs, in one precision: what is copied to a device."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from export.assembly.part import open_part
from export.bundle.card import write_card
from export.bundle.inspection import changed_runtime
from export.bundle.manifest import BUNDLE, open_manifest, write_manifest
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
    open_manifest(bundle)
    client_module(client)
    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists; choose another -o, or add --overwrite")
    if output.resolve() == bundle.resolve():
        raise UserError(f"{output}: is the bundle itself; choose another -o")
    check_replaceable(output, BUNDLE, [bundle])
    # the runtime in edge/ reads sound files even where another one transcribes
    part = open_part(bundle, client, precision)
    content = part.content
    if changed := changed_runtime(part.manifest):
        log.warning("%s: edge/ is of another version, or was changed: %s; it is packed as it is", bundle, ", ".join(changed))  # fmt: skip
    with output_lock(output), replacing(output, BUNDLE) as folder:
        for name, source in part.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
        if content.get("speech_detector") not in part.files:
            content["speech_detector"] = None
        write_card(folder, content)
        write_manifest(folder, content)
    return output
