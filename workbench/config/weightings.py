"""What a recipe may say of a weighting: which systems there are, their options, and whether they would do anything.

A system is a plug-in: a file of workbench/weighting/systems, found by its name and imported when a recipe names it, so that recipes
know no system.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.core.errors import UserError, nearest

SYSTEMS = "workbench.weighting.systems"


@dataclass(frozen=True)
class StageFacts:
    """What decides whether a weighting's schedule takes effect in a stage."""

    epochs: int  # that are reached
    steps: int | None = None  # optimizer steps, where they are known
    stream: bool = False  # an epoch is then a pass over the stream
    decoding: bool = True
    on_policy_share: float = 0.0  # of the micro-batches


class WeightingSettings(BaseModel):
    """Base of the options of a system that can be set up so that it does nothing."""

    model_config = ConfigDict(extra="forbid")

    def inactive_reason(self, stage: StageFacts) -> str | None:
        """Why the system would never do anything in such a stage, and what to set instead; None if it does."""
        if not stage.decoding:
            return (
                "it weighs the decoder's losses, which decoding: false leaves out; set decoding: true, or leave it out"
            )
        if stage.on_policy_share >= 1:
            return (
                "on_policy.share is 1, and on-policy micro-batches are not weighed; set share below 1, or leave it out"
            )
        return None


def known_weightings() -> list[str]:
    """Names of the weighting systems, which are the files of their folder."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(SYSTEMS).__path__))


def weighting_module(name: str) -> ModuleType:
    """The file of a system; raises UserError for a name that is none's."""
    if name not in known_weightings():
        raise UserError(f"weighting name {name!r}{nearest(name, known_weightings())}")
    return importlib.import_module(f"{SYSTEMS}.{name}")


def parse_settings(options: Mapping[str, object]) -> BaseModel:
    """Validate `{name: ..., option: value}`; raises UserError naming the option and the nearest known one."""
    given = dict(options)
    settings: type[BaseModel] = weighting_module(str(given.pop("name", "fixed"))).Settings
    for key in given:
        if key not in settings.model_fields:
            raise UserError(f"weighting option {key!r}{nearest(key, settings.model_fields)}")
    try:
        return settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else "options"
        # an option that takes a number or a word has an error for each
        said = " or ".join(dict.fromkeys(e["msg"] for e in error.errors() if e["loc"][:1] == first["loc"][:1]))
        raise UserError(f"weighting {options.get('name')!r}: {where} is {first['input']!r}; {said}") from None


def inactive_reason(options: Mapping[str, object], stage: StageFacts) -> str | None:
    """Why a recipe's weighting would never do anything in such a stage, and what to set; None if it does."""
    settings = parse_settings(options)
    reason = settings.inactive_reason(stage) if isinstance(settings, WeightingSettings) else None
    return None if reason is None else f"{options['name']} would have no effect: {reason}"


def needs_uncertainty(options: Mapping[str, object]) -> bool:
    """Whether the teacher's uncertainty must be measured for a system: its file says NEEDS_UNCERTAINTY = True."""
    return bool(getattr(weighting_module(str(options.get("name", "fixed"))), "NEEDS_UNCERTAINTY", False))
