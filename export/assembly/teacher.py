"""A teacher's own bundle, for everything that compares students with it."""

from __future__ import annotations

import logging
from pathlib import Path

from export.assembly.build import export_bundle
from export.bundle.manifest import open_manifest
from export.verification.clients import has_graphs_of
from workbench.core.errors import UserError
from workbench.core.hashing import cache_dir
from workbench.core.locks import output_lock
from workbench.models.resolve import fingerprint, resolve_teacher

log = logging.getLogger("workbench")


def teacher_bundle(teacher: str) -> Path:
    """The teacher's own bundle: one given as a path, else an fp32 export of its checkpoint, kept in the cache."""
    if (Path(teacher) / "bundle.json").exists():
        manifest = open_manifest(Path(teacher), check=True)
        if "fp32" not in manifest.precisions or not has_graphs_of(manifest, "edge"):
            raise UserError(
                f"{teacher}: has no fp32 graphs for our own runtime; export the teacher with --precision fp32"
            )
        return Path(teacher)
    checkpoint = resolve_teacher(teacher)
    folder = cache_dir() / "bundles" / fingerprint(checkpoint)[:16]
    if not folder.exists():
        log.info("exporting the teacher, once")
    with output_lock(folder, wait=True):
        return export_bundle(checkpoint, folder, ["fp32"], name=short_name(teacher), overwrite=True)


def short_name(teacher: str) -> str:
    """A teacher's name without its owner or folder."""
    return teacher.rstrip("/").rsplit("/", 1)[-1]
