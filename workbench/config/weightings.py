"""The weighting in a recipe: which systems there are, their options, and whether they would take effect.

A system is a plug-in: a file of workbench/weighting/systems, found by its name and imported when a recipe names it, so that this package
depends on no system.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.core.errors import UserError, did_you_mean

SYSTEMS = "workbench.weighting.systems"
CONTROLS = ("permute", "schedule_only")  # options of every weighting; see workbench/weighting/controls.py


@dataclass(frozen=True)
class StageSchedule:
    """What decides whether a weighting's schedule takes effect in a stage."""

    epochs: int  # epochs that the stage reaches
    steps: int | None = None  # optimizer steps, where they are known
    stream: bool = False  # an epoch is then a pass over the stream
    decoder_losses: bool = True
    on_policy_fraction: float = 0.0  # share of the micro-batches that are on-policy


class WeightingSettings(BaseModel):
    """Base of the options of a system that can be configured to have no effect."""

    model_config = ConfigDict(extra="forbid")

    def inactive_reason(self, stage: StageSchedule) -> str | None:
        """Why the system would have no effect in such a stage, and what to set instead; None if it has one."""
        if not stage.decoder_losses:
            return "it weights the decoder's losses, which decoder_losses: false leaves out; set decoder_losses: true, or remove the weighting"
        if stage.on_policy_fraction >= 1:
            return "on_policy.fraction is 1, and on-policy micro-batches are not weighted; set fraction below 1, or remove the weighting"
        return None


def known_weightings() -> list[str]:
    """Names of the weighting systems, which are the files of their folder."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(SYSTEMS).__path__))


def weighting_module(name: str) -> ModuleType:
    """The file of a system; raises UserError for an unknown name."""
    if name not in known_weightings():
        raise UserError(f"weighting name {name!r}{did_you_mean(name, known_weightings())}")
    return importlib.import_module(f"{SYSTEMS}.{name}")


def parse_settings(options: Mapping[str, object]) -> BaseModel:
    """Validate `{name: ..., option: value}`; raises UserError naming the option and the nearest known one."""
    names = earlier_names(options)
    for earlier, key in names.items():
        if earlier in options and key in options:
            raise UserError(
                f"weighting option {key} is given twice, also by its earlier name {earlier!r}; keep one of them"
            )
    given = {names.get(key, key): value for key, value in options.items() if key not in CONTROLS}
    settings: type[BaseModel] = weighting_module(str(given.pop("name", "fixed"))).Settings
    for key in given:
        if key not in settings.model_fields:
            raise UserError(f"weighting option {key!r}{did_you_mean(key, [*settings.model_fields, *CONTROLS])}")
    try:
        return settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else "options"
        # an option that takes a number or a word has an error for each
        said = " or ".join(dict.fromkeys(e["msg"] for e in error.errors() if e["loc"][:1] == first["loc"][:1]))
        raise UserError(f"weighting {options.get('name')!r}: {where} is {first['input']!r}; {said}") from None


def parse_controls(options: Mapping[str, object]) -> dict[str, bool]:
    """The controls that a recipe turns on; every weighting of utterances has them.

    Raises:
        UserError: one is not true or false, both are on, or the weighting weights single tokens, which utterances cannot
            exchange, or all utterances alike, so that exchanging their weights has no effect.
    """
    controls = {name: options[name] for name in CONTROLS if name in options}
    for control, value in controls.items():
        if not isinstance(value, bool):
            raise UserError(f"weighting option {control} is {value!r}; expected true or false")
    on = {control: True for control, value in controls.items() if value}
    name = str(options.get("name", "fixed"))
    module = weighting_module(name) if on else None
    if getattr(module, "WEIGHTS_TOKENS", False):
        raise UserError(
            f"weighting {name!r} weights single tokens; {' and '.join(on)} needs one that weights utterances"
        )
    if getattr(module, "WEIGHTS_ALIKE", False):
        raise UserError(
            f"weighting {name!r} weights all utterances alike, so {' and '.join(on)} would have no effect; leave it out"
        )
    if len(on) > 1:
        raise UserError(f"weighting: {' and '.join(on)} are both on; choose one")
    return on


def earlier_names(options: Mapping[str, object]) -> Mapping[str, str]:
    """Today's names of a weighting's options by those of earlier versions; none for a name that is not known."""
    name = str(options.get("name", "fixed"))
    if name not in known_weightings():
        return {}
    names: Mapping[str, str] = getattr(weighting_module(name).Settings, "EARLIER", {})
    return names


def inactive_reason(options: Mapping[str, object], stage: StageSchedule) -> str | None:
    """Why a recipe's weighting would have no effect in such a stage, and what to set; None if it has one."""
    settings = parse_settings(options)
    reason = settings.inactive_reason(stage) if isinstance(settings, WeightingSettings) else None
    return None if reason is None else f"{options['name']} would have no effect: {reason}"


def looks_ahead(options: Mapping[str, object]) -> bool:
    """Whether a system learns its weights on speech that it does not train on: its file sets LOOKS_AHEAD = True."""
    return bool(getattr(weighting_module(str(options.get("name", "fixed"))), "LOOKS_AHEAD", False))


def needs_uncertainty(options: Mapping[str, object]) -> bool:
    """Whether the teacher's uncertainty must be measured for a system: its file sets NEEDS_UNCERTAINTY = True."""
    return bool(getattr(weighting_module(str(options.get("name", "fixed"))), "NEEDS_UNCERTAINTY", False))
