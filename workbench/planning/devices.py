"""Accelerators that a recipe can be planned for: figures from their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.core.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Device:
    """One accelerator."""

    memory_gb: float
    # peak of dense matrix products by precision; fp32 on tensor cores (TF32) where there are any
    tflops: dict[str, float]


DEVICES = {
    "h200-141gb": Device(141, {"bf16": 989, "fp32": 494}),
    "h100-80gb": Device(80, {"bf16": 989, "fp32": 494}),
    "a100-80gb": Device(80, {"bf16": 312, "fp32": 156}),
    "a100-40gb": Device(40, {"bf16": 312, "fp32": 156}),
    "l40s-48gb": Device(48, {"bf16": 362, "fp32": 183}),
    "l4-24gb": Device(24, {"bf16": 121, "fp32": 60}),
    "rtx4090-24gb": Device(24, {"bf16": 165, "fp32": 82}),
    "rtx3090-24gb": Device(24, {"bf16": 71, "fp32": 35}),
}


def open_device(name: str) -> Device:
    """Find a device; raises UserError naming the nearest one."""
    if name not in DEVICES:
        raise UserError(f"--device {name!r}{did_you_mean(name, DEVICES)}")
    return DEVICES[name]
