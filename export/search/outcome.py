"""The result of a search."""

from __future__ import annotations

from dataclasses import dataclass, field

from export.quantization.precisions import Precision
from export.search.rows import Confirmed, Row
from workbench.core.errors import UserError


@dataclass
class SearchResult:
    """What was measured and chosen."""

    chosen: Precision | None  # None: nothing meets the budget
    rows: list[Row]  # of every precision, on validation clips
    layers: dict[str, list[float]]  # part and scheme -> error of its output with that layer alone in the scheme
    notes: list[str] = field(default_factory=list)
    test: Confirmed | None = None

    @property
    def name(self) -> str:
        """The chosen precision's name; empty if there is none."""
        return self.chosen.name if self.chosen else ""

    def nothing_fits(self) -> UserError:
        """The error to raise if nothing meets the budget."""
        nearest = min(self.rows, key=lambda r: float(r["over"]))
        return UserError(
            f"no precision meets the budget; the nearest is {nearest['name']} ({', '.join(nearest['breaks'])}): "
            "relax --budget, or prune the vocabulary or layers"
        )

    def as_json(self) -> dict[str, object]:
        """The result as the manifest stores it."""
        return {"chosen": self.name, "validation": self.rows, "layers": self.layers, "notes": self.notes, "test": self.test}  # fmt: skip
