"""The environment of Optimum's ONNX package: our interpreter, with a folder prepended to its path that holds other versions of some packages.

torch, numpy, onnx and onnxruntime come from our own environment; the folder, in the workbench's cache, holds the few packages of
requirements.txt. If the installed packages already satisfy optimum-onnx, no folder is created.
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

from workbench.core.atomic import atomic_folder
from workbench.core.disk import check_free_space
from workbench.core.errors import UserError, last_line
from workbench.core.hashing import cache_folder
from workbench.core.locks import output_lock
from workbench.core.machine.children import killed_with_parent

log = logging.getLogger("workbench")
PACKAGE = "optimum-onnx"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# a user's pip or uv settings that would redirect the installation or constrain versions
NOT_PASSED_ON = ("PIP_CONSTRAINT", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "UV_CONSTRAINT")
NEEDED_BYTES = 150_000_000  # 85 MB of files, and the wheels while they are unpacked
# everything the scripts import
IMPORTS = """
from optimum.exporters.onnx import export_models, model_configs
from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
from transformers import GenerationConfig, GenerationMixin, WhisperForConditionalGeneration, WhisperProcessor
"""


@dataclass(frozen=True)
class Environment:
    """Our interpreter, and the folder first on its path; None if our own packages suffice."""

    folder: Path | None

    def command(self, script: str | Path, *arguments: str) -> list[str]:
        """Command line that runs a script of this folder, or any other by absolute path; neither the script's folder nor the current one is on Python's path."""
        return [sys.executable, "-P", str(Path(__file__).parent / script), *arguments]

    def variables(self) -> dict[str, str]:
        """Environment variables for the command: ours, plus the folder on the path and the model hub disabled."""
        theirs = [Path(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
        places = [self.folder, *theirs] if self.folder else theirs
        path = os.pathsep.join(str(place.resolve()) for place in places)
        return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def environment() -> Environment:
    """The environment for Optimum, created on first use.

    Raises:
        UserError: it is missing and pip cannot fetch its packages.
    """
    if is_satisfied(PACKAGE):
        return Environment(None)
    folder = _folder()
    if not folder.is_dir():
        with output_lock(folder, wait=True):
            if not folder.is_dir():  # another process may have made it meanwhile
                _make(folder)
    return Environment(folder)


def is_satisfied(package: str) -> bool:
    """Whether a package and suitable versions of all its requirements (extras aside) are installed."""
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
    """Its folder in the cache, keyed by what determines its content."""
    text = REQUIREMENTS.read_text(encoding="utf-8")
    key = [text, sys.implementation.name, sys.version_info[:2], sysconfig.get_platform()]
    return cache_folder("optimum", key)


def _make(folder: Path) -> None:
    check_free_space(folder, NEEDED_BYTES, "the environment for Optimum")
    started = time.monotonic()
    log.info("creating the environment for Optimum (once): fetching %s and its dependencies, 17 MB", PACKAGE)
    with atomic_folder(folder) as new:
        options = ["--target", str(new), "--no-deps", "--require-hashes", "--only-binary", ":all:", "--quiet"]
        variables = {k: v for k, v in os.environ.items() if k not in NOT_PASSED_ON}
        if said := _failure([*_installer(), *options, "--requirement", str(REQUIREMENTS)], variables):
            raise UserError(
                f"the environment for Optimum cannot be created ({said}); its packages are fetched once: "
                "give pip access to its package index and run the same command again"
            )
        # proves that it works with our own packages, and caches the bytecode of the modules in use
        variables = {k: v for k, v in Environment(new).variables().items() if k != "PYTHONDONTWRITEBYTECODE"}
        if said := _failure([sys.executable, "-P", "-c", IMPORTS], variables):
            raise UserError(
                f"Optimum cannot be imported together with the installed packages ({said}); "
                "install the versions that are tested together: pip install -c constraints.txt -e '.[cpu,demo]'"
            )
    log.info("created the environment for Optimum in %.0f s: %s", time.monotonic() - started, folder)


def _failure(command: Sequence[str], variables: dict[str, str]) -> str:
    """Run a command; returns the last line of its stderr if it fails, else an empty string."""
    done = subprocess.run(
        killed_with_parent(command),
        capture_output=True,
        text=True,
        check=False,
        env=variables,
        stdin=subprocess.DEVNULL,
    )
    return last_line(done.stderr) if done.returncode else ""


def _installer() -> Sequence[str]:
    """Command line of our environment's pip, or of uv, whose environments have no pip."""
    if importlib.util.find_spec("pip"):
        # give up early on an unreachable index; no bytecode yet, since most modules are never imported
        options = ["--disable-pip-version-check", "--retries", "1", "--timeout", "30"]
        return [sys.executable, "-m", "pip", *options, "install", "--no-compile", "--no-user"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise UserError(
        f"{sys.executable}: neither pip nor uv is available to fetch Optimum's packages; install pip (`python -m ensurepip`)"
    )
