"""Find a weighting system by the name of its file."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from workbench.errors import UserError, nearest
from workbench.weighting.protocol import StageFacts, TeacherStatistics, Weighting, WeightingSettings

NOT_SYSTEMS = {"protocol", "registry"}


def known_weightings() -> list[str]:
    """Names of the weighting systems, which are the files of this folder."""
    import workbench.weighting as package

    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in NOT_SYSTEMS)


def _module(name: str) -> ModuleType:
    if name not in known_weightings():
        raise UserError(f"weighting name {name!r}{nearest(name, known_weightings())}")
    return importlib.import_module(f"workbench.weighting.{name}")


def parse_settings(options: dict[str, Any]) -> BaseModel:
    """Validate `{name: ..., option: value}`; raises UserError naming the option and the nearest known one."""
    given = dict(options)
    settings: type[BaseModel] = _module(str(given.pop("name", "fixed"))).Settings
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


def without_effect(options: dict[str, Any], stage: StageFacts) -> str | None:
    """Why a recipe's weighting would never do anything in such a stage, and what to set; None if it does."""
    settings = parse_settings(options)
    reason = settings.without_effect(stage) if isinstance(settings, WeightingSettings) else None
    return None if reason is None else f"{options['name']} would have no effect: {reason}"


def needs_uncertainty(options: dict[str, Any]) -> bool:
    """Whether the teacher's uncertainty must be measured for a system: its file says NEEDS_UNCERTAINTY = True."""
    return bool(getattr(_module(str(options.get("name", "fixed"))), "NEEDS_UNCERTAINTY", False))


def build_weighting(options: dict[str, Any], statistics: TeacherStatistics, seed: int = 0) -> Weighting:
    """Build the system that a recipe names, for a run with this seed."""
    weighting: Weighting = _module(str(options.get("name", "fixed"))).build(parse_settings(options), statistics)
    weighting.seed = seed
    return weighting
