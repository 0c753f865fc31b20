"""What would fail, or be passed over in silence, later in a run: said before it starts."""

from __future__ import annotations

import importlib.util
from typing import Any

from workbench.errors import UserError
from workbench.recipe import Recipe


def check_trackers(recipe: Recipe) -> None:
    """Raise UserError for a tracker that is not installed: Accelerate would go on without it, and say nothing."""
    for name in recipe.trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers names {name!r}, which is not installed; pip install {name}, or leave it out")


def check_sharding(accelerator: Any) -> None:
    """Raise UserError for a way of sharding that checkpoints cannot be written under."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise UserError("FSDP version 1 is not supported; set `fsdp_version: 2` in the accelerate configuration")
    if getattr(accelerator.state, "deepspeed_plugin", None) is not None:
        raise UserError("DeepSpeed is not supported; use FSDP 2, which shards the same way (docs/scale.md)")
