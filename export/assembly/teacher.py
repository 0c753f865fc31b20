"""A teacher's own bundle, for everything that compares students with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from export.assembly.build import export_bundle
from export.bundle.manifest import open_manifest
from export.verification.clients import has_graphs_of
from workbench.core.errors import UserError
from workbench.core.hashing import cache_dir
from workbench.core.locks import output_lock
from workbench.models.resolve import fingerprint, resolve_teacher

log = logging.getLogger("workbench")


def teacher_bundle(teacher: str, precisions: Sequence[str] = ("fp32",)) -> Path:
    """The teacher's own bundle: one given as a path, else an export of its checkpoint, kept in the cache.

    Args:
        teacher: a name as listed by `workbench teachers`, a checkpoint or a bundle.
        precisions: what the bundle has to hold, fp32 first.

    Raises:
        UserError: the teacher cannot be used, or is a bundle without one of the precisions or without graphs for our own runtime.
    """
    if (Path(teacher) / "bundle.json").exists():
        manifest = open_manifest(Path(teacher), check=True)
        missing = [one for one in precisions if one not in manifest.precisions]
        if missing or not has_graphs_of(manifest, "edge"):
            raise UserError(
                f"{teacher}: has no {(missing or ['fp32'])[0]} graphs for our own runtime; export the teacher with --precision {','.join(precisions)}"
            )
        return Path(teacher)
    checkpoint = resolve_teacher(teacher)
    folder = cache_dir() / "bundles" / "-".join([fingerprint(checkpoint)[:16], *precisions[1:]])
    if not folder.exists():
        log.info("exporting the teacher, once")
    with output_lock(folder, wait=True):
        return export_bundle(checkpoint, folder, list(precisions), name=short_name(teacher), overwrite=True)


def short_name(teacher: str) -> str:
    """A teacher's name without its owner or folder."""
    return teacher.rstrip("/").rsplit("/", 1)[-1]
