"""The machine that figures were measured on: what a reader needs to judge them, and nothing that identifies it."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import TypedDict

PACKAGES = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "jiwer",
)
# Instruction sets that decide how fast int8 and bf16 are, with the names that /proc/cpuinfo uses.
CPU_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)


class Gpus(TypedDict, total=False):
    """The GPUs; nothing where there are none."""

    gpus: list[str]  # their names
    cuda: str | None  # torch's version of it


class Host(Gpus):
    """The machine, as JSON."""

    system: str  # operating system and architecture
    python: str
    cpu: str
    cpus: int  # that this process may use
    cpu_flags: list[str]  # those of CPU_FLAGS that it has
    memory_gb: float
    versions: dict[str, str]  # by package, for those of PACKAGES that are installed


def cpu_flags() -> list[str]:
    """Instruction sets of this CPU that matter here; empty where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    present = set(found.group(1).split()) if found else set()
    return [flag for flag in CPU_FLAGS if flag in present]


def has_int8_dot_product() -> bool:
    """Whether the CPU multiplies int8 without 16-bit intermediate sums that saturate (VNNI, or Arm's dot product)."""
    return bool({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(cpu_flags()))


def cpu_model() -> str:
    """Name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def usable_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Installed versions of the packages that figures depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_gpus() -> Gpus:
    """Names of the GPUs that torch sees, and its CUDA; empty where there are none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"gpus": names, "cuda": torch.version.cuda}


def describe_host() -> Host:
    """Host, CPU flags, GPUs and versions, as JSON; no host name, user or path."""
    import psutil

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "cpus": usable_cpus(),
        "cpu_flags": cpu_flags(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        **describe_gpus(),
        "versions": versions(),
    }
