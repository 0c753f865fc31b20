"""What a search measured, and what it chose."""

from __future__ import annotations

from dataclasses import dataclass, field

from export.quantization.precisions import Precision
from export.search.rows import Confirmed, Row
from workbench.core.errors import UserError


@dataclass
class Search:
    """What was measured, and what was chosen."""

    chosen: Precision | None  # None: nothing keeps within the budget
    rows: list[Row]  # of every precision, on validation
    layers: dict[str, list[float]]  # part and scheme -> error of its output with that layer alone in the scheme
    notes: list[str] = field(default_factory=list)
    test: Confirmed | None = None

    @property
    def name(self) -> str:
        """The chosen precision's name; empty where there is none."""
        return self.chosen.name if self.chosen else ""

    def nothing_fits(self) -> UserError:
        """What to say where there is none."""
        nearest = min(self.rows, key=lambda r: float(r["over"]))
        return UserError(
            f"no precision keeps within the budget; nearest is {nearest['name']} ({', '.join(nearest['breaks'])}): "
            "widen --budget, or prune the vocabulary or layers"
        )

    def as_json(self) -> dict[str, object]:
        """For the manifest."""
        return {"chosen": self.name, "validation": self.rows, "layers": self.layers, "notes": self.notes, "test": self.test}  # fmt: skip
