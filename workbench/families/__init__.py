"""What differs between families of recognisers, behind the protocol `Family`, one file each."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import UserError
from workbench.families.protocol import Family
from workbench.files import read_object

__all__ = ["Family", "open_family"]


def open_family(folder: Path) -> Family:
    """Open a checkpoint folder as its family; raises UserError for one that is not supported."""
    from workbench.families.whisper import Whisper

    families = {"whisper": Whisper}
    kind = read_object(folder / "config.json", "a checkpoint's configuration").get("model_type")
    if not isinstance(kind, str) or kind not in families:
        raise UserError(f"{folder}: a {str(kind)[:60]!r} model; supported families: {', '.join(families)}")
    return families[kind](folder)
