"""Find runtimes by module name."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from export.bundle.ctc import unread_reason
from export.edge.bundle.manifest import Manifest
from export.verification.clients.protocol import Client
from workbench.core.errors import UserError, did_you_mean


class Needs(NamedTuple):
    """What a runtime reads from a bundle."""

    graphs: tuple[str, ...]
    files: tuple[str, ...]


NOT_CLIENTS = {"protocol", "registry", "worker"}


def known_clients() -> list[str]:
    """Names of the runtimes: the modules of this folder."""
    names = (m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in names if name not in NOT_CLIENTS and not name.startswith("_"))


def client_module(name: str) -> ModuleType:
    """The module of a runtime; raises UserError for an unknown name."""
    if name not in known_clients():
        raise UserError(f"client {name!r}{did_you_mean(name, known_clients())}")
    return importlib.import_module(f"export.verification.clients.{name}")


def unavailable_reason(name: str) -> str | None:
    """None if a runtime can be used, else how to install it. May create the runtime's environment (Optimum)."""
    module = client_module(name)
    if hasattr(module, "missing"):
        remedy: str | None = module.missing()
        return remedy
    there = module.installed() if hasattr(module, "installed") else importlib.util.find_spec(module.REQUIRES)
    return None if there else str(module.INSTALL)


def is_exact(name: str) -> bool:
    """Whether a runtime's tokens must equal torch's in fp32."""
    return bool(client_module(name).EXACT)


def needs_of(manifest: Manifest, name: str) -> Needs | None:
    """Which graphs and files a runtime reads from a bundle; None if it does not read such models."""
    module = client_module(name)
    if not manifest.has_ctc_head:
        return Needs(module.GRAPHS, module.FILES)
    return None if unread_reason(manifest.content, name) else Needs(*module.CTC)


def unreadable_reason(manifest: Manifest, name: str) -> str | None:
    """Why a runtime cannot read a bundle; None if it can."""
    if manifest.has_ctc_head and (reason := unread_reason(manifest.content, name)):
        return reason
    return None if has_graphs_of(manifest, name) else f"the bundle was packed for {manifest.packed_for}"


def has_graphs_of(manifest: Manifest, name: str) -> bool:
    """Whether a bundle has every graph that a runtime needs."""
    needs = needs_of(manifest, name)
    return needs is not None and all(
        set(needs.graphs) <= set(of_one) for of_one in manifest.content["precisions"].values()
    )


def open_client(name: str, bundle: Path, precision: str, threads: int | None) -> Client:
    """Open a bundle in a runtime."""
    client: Client = client_module(name).open_client(bundle, precision, threads)
    return client
