"""What a run writes down: metrics.jsonl, and weights.parquet with the weight of every utterance at every step."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from workbench.files import atomic_path

log = logging.getLogger("workbench")


class RunLog:
    """Append-only logs that follow the checkpoints: what is newer than the one resumed from is dropped."""

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        self.folder, self.enabled = folder, enabled
        self.metrics, self.parts = folder / "metrics.jsonl", folder / "weights"
        self.rows: list[dict[str, Any]] = []
        self.latest = ""

    def step(self, step: int, stage: str, scalars: dict[str, float], rows: list[dict[str, Any]]) -> None:
        """Record a training step."""
        self.latest = f"loss {scalars['loss']:.4f}"
        self.rows += rows
        self._append({"step": step, "stage": stage, **{k: float(f"{v:.6g}") for k, v in scalars.items()}})

    def validation(self, step: int, stage: str, scores: dict[str, float]) -> None:
        """Record and say a validation."""
        log.info(
            "%s, step %d: validation WER %.2f %%, CER %.2f %%, loops %d",
            stage,
            step,
            scores["wer"],
            scores["cer"],
            scores["loops"],
        )
        self._append({"step": step, "stage": stage, **{f"validation_{k}": v for k, v in scores.items()}})

    def truncate(self, step: int) -> None:
        """Drop what was logged after a step, because those steps are done again."""
        if not self.enabled:
            return
        if self.metrics.is_file():
            kept = []
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except json.JSONDecodeError:
                    continue  # the line that the kill cut short
            with atomic_path(self.metrics) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
        for part in self.parts.glob("*.parquet"):
            if int(part.stem) > step:
                part.unlink()

    def flush(self, step: int) -> None:
        """Write the weights since the last flush as the part that ends at `step`."""
        if self.enabled and self.rows:
            import pyarrow as pa
            import pyarrow.parquet as pq

            with atomic_path(self.parts / f"{step:08d}.parquet") as temporary:
                pq.write_table(pa.Table.from_pylist(self.rows), temporary)
        self.rows = []

    def finish(self) -> None:
        """Join the parts to weights.parquet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts = sorted(self.parts.glob("*.parquet"))
        if self.enabled and parts:
            with atomic_path(self.folder / "weights.parquet") as temporary:
                pq.write_table(pa.concat_tables([pq.read_table(part) for part in parts]), temporary)
            shutil.rmtree(self.parts)

    def _append(self, row: dict[str, Any]) -> None:
        if self.enabled:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
