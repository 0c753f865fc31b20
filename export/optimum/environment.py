"""Where Optimum's ONNX package runs: with our interpreter and a folder of what it needs that differs from our own packages.

torch, numpy, onnx and onnxruntime are those of our own environment; a folder of the workbench's cache, first on the path, has
the few packages of requirements.txt. Where our own packages suit Optimum as they are, there is no folder.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from workbench.children import ending_with_us
from workbench.errors import UserError, last_line
from workbench.files import atomic_folder, cache_dir, check_free_space, sha256_of
from workbench.locks import claimed

log = logging.getLogger("workbench")
PACKAGE = "optimum-onnx"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
NEEDED_BYTES = 250_000_000  # 73 MB of files, as much of bytecode later, and the wheels themselves


@dataclass(frozen=True)
class Environment:
    """Our interpreter, and the folder that comes first on its path; None where our own packages do."""

    folder: Path | None

    def command(self, script: Path, *arguments: str) -> list[str]:
        """A command line that runs a script in it and ends with this process; neither its folder nor the current one is on the path."""
        return ending_with_us([sys.executable, "-P", str(script), *arguments])

    def variables(self) -> dict[str, str]:
        """Environment variables for the command: ours, with the folder on the path and no model hub."""
        theirs = [Path(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
        places = [self.folder, *theirs] if self.folder else theirs
        path = os.pathsep.join(str(place.resolve()) for place in places)
        return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def environment() -> Environment:
    """The environment for Optimum, made if it is not there yet.

    Raises:
        UserError: it has to be made, and pip cannot fetch what it needs.
    """
    if is_satisfied(PACKAGE):
        return Environment(None)
    folder = _folder()
    if not folder.is_dir():
        with claimed(folder, wait=True):
            if not folder.is_dir():  # another process may have made it meanwhile
                _make(folder)
    return Environment(folder)


def is_satisfied(package: str) -> bool:
    """Whether a package is installed here together with versions of all that it requires (extras aside)."""
    try:
        wanted = [Requirement(text) for text in requires(package) or []]
        return all(
            requirement.specifier.contains(version(requirement.name), prereleases=True)
            for requirement in wanted
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        )
    except PackageNotFoundError:
        return False


def _folder() -> Path:
    """Its place in the cache, named after what decides its content."""
    text = REQUIREMENTS.read_text(encoding="utf-8")
    key = [text, sys.implementation.name, sys.version_info[:2], sysconfig.get_platform()]
    return cache_dir() / "optimum" / sha256_of(key)[:16]


def _make(folder: Path) -> None:
    check_free_space(folder, NEEDED_BYTES, "the environment for Optimum")
    started = time.monotonic()
    log.info("making the environment for Optimum, once: fetching %s and what it needs, 17 MB", PACKAGE)
    with atomic_folder(folder) as new:
        command = [*_installer(), "--target", str(new), "--no-deps", "--require-hashes", "--only-binary", ":all:", "--quiet"]  # fmt: skip
        done = subprocess.run(
            ending_with_us([*command, "--requirement", str(REQUIREMENTS)]),
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise UserError(
                f"the environment for Optimum cannot be made ({last_line(done.stderr)}); it is fetched once: "
                "let pip reach its package index and run the same command again"
            )
    log.info("made the environment for Optimum in %.0f s: %s", time.monotonic() - started, folder)


def _installer() -> Sequence[str]:
    """The pip of our own environment, or uv, whose environments have no pip."""
    if importlib.util.find_spec("pip"):
        # no bytecode: most modules are never imported
        return [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-compile", "--no-user"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise UserError(
        f"{sys.executable}: neither pip nor uv is there, and one of them has to fetch what Optimum needs; install pip (`python -m ensurepip`)"
    )
