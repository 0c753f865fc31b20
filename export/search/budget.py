"""Budgets (limits on WER, size, memory and latency) and profiles of target devices."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export.search.rows import Figure, Row
from workbench.core.errors import UserError, did_you_mean

FIELDS = {"wer": "wer", "size": "size_mb", "rss": "peak_rss_mb", "p50": "p50_ms"}
LIMITED: tuple[Figure, ...] = ("wer", "size_mb", "peak_rss_mb", "p50_ms")
TERM = re.compile(r"(\w+)\s*<=\s*(\+?)(\d+(?:\.\d+)?)$")


@dataclass(frozen=True)
class Budget:
    """Limits; None means unlimited. WER in percentage points, sizes in MB (10^6 bytes), latency in ms."""

    wer_above: float | None = None  # above the student's own fp32 WER
    wer: float | None = None
    size_mb: float | None = None
    peak_rss_mb: float | None = None
    p50_ms: float | None = None

    def violations(self, row: Row, fp32_wer: float) -> list[str]:
        """The limits that a measured system exceeds, as text."""
        limits = {name: getattr(self, name) for name in LIMITED}
        said = [f"{k} {row[k]:g} > {limit:g}" for k, limit in limits.items() if limit is not None and row[k] > limit]
        above = row["wer"] - fp32_wer
        # rounding of the percentages must not matter
        if self.wer_above is not None and above > self.wer_above + 1e-6:
            said.append(f"wer {above:+.2f} > {self.wer_above:+g}")
        return said

    def relative_excess(self, row: Row, fp32_wer: float) -> float:
        """Sum of a measured system's relative excesses over its limits."""
        values: dict[str, float] = {name: row[name] for name in LIMITED if name in row}
        values["wer_above"] = row["wer"] - fp32_wer
        limits = {k: v for k, v in self.__dict__.items() if v is not None}
        return float(sum(max(0.0, (values[k] - limit) / max(limit, 1e-6)) for k, limit in limits.items()))


def parse_budget(text: str) -> Budget:
    """Parse `wer<=+0.5,size<=60,rss<=250,p50<=80`; a WER with a plus is relative to the student's own in fp32. Raises UserError."""
    budget = Budget()
    for term in filter(None, (part.strip() for part in text.split(","))):
        found = TERM.fullmatch(term)
        if not found:
            raise UserError(f"--budget {text!r}: {term!r}: expected terms such as wer<=+0.5 or size<=60")
        name, plus, value = found.groups()
        if name not in FIELDS:
            raise UserError(f"--budget {text!r}: {name!r}{did_you_mean(name, FIELDS)}")
        if plus and name != "wer":
            raise UserError(f"--budget {text!r}: only wer may be relative (+), {name} is absolute")
        budget = replace(budget, **{"wer_above" if plus else FIELDS[name]: float(value)})
    if budget == Budget():
        raise UserError("--budget is empty; expected terms such as wer<=+0.5 or size<=60")
    return budget


class Profile(BaseModel):
    """A target device: what differs from this machine."""

    model_config = ConfigDict(extra="forbid")

    name: str = "this machine"
    threads: int | None = Field(None, ge=1)
    int8_dot_product: bool | None = None  # whether its CPU has one; without it int8 uses 7 bits
    size_mb: float | None = Field(None, gt=0)
    peak_rss_mb: float | None = Field(None, gt=0)
    p50_ms: float | None = Field(None, gt=0)
    encoder: list[str] = ["fp32", "int8", "int8_static", "w8", "q4"]  # schemes to try
    decoder: list[str] = ["fp32", "int8", "w8", "q4"]

    def limited(self, budget: Budget) -> Budget:
        """The budget, with the device's limits where it sets none."""
        own = {k: getattr(self, k) for k in ("size_mb", "peak_rss_mb", "p50_ms") if getattr(budget, k) is None}
        return replace(budget, **own)


def read_profile(path: Path) -> Profile:
    """Read a device profile (JSON); raises a one-line UserError."""
    from export.quantization.precisions import parse_precision

    try:
        profile = Profile.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a device profile (docs/bundle.md)") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        hint = did_you_mean(field, Profile.model_fields) if first["type"] == "extra_forbidden" else ""
        raise UserError(f"{path}: field {field!r}: {first['msg'].lower()}{hint}") from None
    for scheme in profile.encoder:
        parse_precision(f"{scheme}/fp32")
    for scheme in profile.decoder:
        parse_precision(f"fp32/{scheme}")
    return profile
