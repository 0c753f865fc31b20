"""What a run writes down: metrics.jsonl, and weights.parquet with the weight of every utterance at every step.

On-policy micro-batches have no rows in weights.parquet, because no weighting sees them. A value that a stage does not compute,
such as the weights of one that does not decode, is null there and missing in metrics.jsonl.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from workbench.core.atomic import atomic_path
from workbench.core.disk import disk_errors
from workbench.core.errors import UserError
from workbench.core.files import json_lines
from workbench.run.folder import delete_run_files

log = logging.getLogger("workbench")
STEPS_TOGETHER = 10  # figures are fetched from the device for this many steps at a time: each fetch would stall the GPU


class RunLog:
    """Append-only logs that follow the checkpoints: what is newer than the one resumed from is dropped.

    Every process keeps the weights of its own utterances; the main one writes the metrics of the whole step.
    """

    def __init__(
        self, folder: Path, rank: int = 0, track: Callable[[dict[str, float], int], None] | None = None
    ) -> None:
        self.folder, self.rank, self.track = folder, rank, track
        self.metrics, self.parts = folder / "metrics.jsonl", folder / "weights"
        self.waiting: list[tuple[int, str, Mapping[str, float | Tensor], list[tuple[list[str], Tensor]]]] = []
        self.rows: list[dict[str, object]] = []
        self.latest = ""

    def step(
        self, step: int, stage: str, scalars: Mapping[str, float | Tensor], weights: list[tuple[list[str], Tensor]]
    ) -> None:
        """Record a training step.

        Args:
            step: number of the step in the run.
            stage: name of the stage.
            scalars: numbers or scalar tensors.
            weights: ids of the utterances of each micro-batch, and their columns WEIGHTS [columns, utterances].
        """
        self.waiting.append((step, stage, scalars, weights))
        if len(self.waiting) >= STEPS_TOGETHER:
            self.flush_pending()

    def flush_pending(self) -> None:
        """Fetch what is waiting; raises UserError if a loss was not finite."""
        for step, stage, scalars, weights in self.waiting:
            values = {key: float(value) for key, value in scalars.items()}
            if not math.isfinite(values["loss"]):
                self.waiting = []
                raise UserError(
                    f"{self.folder}: the loss is not finite at step {step}; lower stages.{stage}.learning_rate"
                )
            # what could not be computed, such as the disagreement with a teacher that did not run, is left out
            values = {key: value for key, value in values.items() if math.isfinite(value)}
            self.latest = f"loss {values['loss']:.4f}"
            for ids, columns in weights:
                for name, *row in zip(ids, *columns.tolist(), strict=True):
                    known = (value if math.isfinite(value) else None for value in row)
                    self.rows.append(
                        {"stage": stage, "step": step, "id": name, **dict(zip(WEIGHTS, known, strict=True))}
                    )
            self._append({"step": step, "stage": stage, **{k: float(f"{v:.6g}") for k, v in values.items()}})
            if self.track:
                self.track(values, step)
        self.waiting = []

    def validation(self, step: int, stage: str, scores: dict[str, float]) -> None:
        """Record and log a validation."""
        self.flush_pending()
        log.info(
            "%s, step %d: validation WER %.2f %%, CER %.2f %%, loops %d",
            stage, step, scores["wer"], scores["cer"], scores["loops"],
        )  # fmt: skip
        named = {f"validation_{k}": v for k, v in scores.items()}
        self._append({"step": step, "stage": stage, **named})
        if self.track:
            self.track(named, step)

    def truncate(self, step: int) -> None:
        """Drop what was logged after a step, because those steps are done again."""
        if self.rank == 0 and self.metrics.is_file():
            kept = []
            for line in json_lines(self.metrics):
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except json.JSONDecodeError:
                    continue  # the line that the kill cut short
            with atomic_path(self.metrics) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
        for part in self.parts.glob(f"*-{self.rank:03d}.parquet"):
            if int(part.stem.split("-")[0]) > step:
                part.unlink()

    def flush(self, step: int) -> None:
        """Write the weights since the last flush as the part that ends at `step`."""
        self.flush_pending()
        if self.rows:
            import pyarrow as pa
            import pyarrow.parquet as pq

            # given, because a column that is null in all of a part would have no type to be joined by
            columns = [("stage", pa.string()), ("step", pa.int64()), ("id", pa.string())]
            schema = pa.schema(columns + [(name, pa.float64()) for name in WEIGHTS])
            with disk_errors(self.parts), atomic_path(self.parts / f"{step:08d}-{self.rank:03d}.parquet") as temporary:
                pq.write_table(pa.Table.from_pylist(self.rows, schema), temporary)
        self.rows = []

    def finish(self) -> None:
        """Join the parts of all processes to weights.parquet, a part at a time."""
        import pyarrow.parquet as pq

        parts = sorted(self.parts.glob("*.parquet"))
        if parts:
            path = self.folder / "weights.parquet"
            with disk_errors(path), atomic_path(path) as temporary:
                schema = pq.read_schema(parts[0])
                with pq.ParquetWriter(temporary, schema) as writer:
                    for part in parts:
                        writer.write_table(pq.read_table(part).cast(schema))
            delete_run_files(self.folder, self.parts.name)

    def _append(self, row: Mapping[str, object]) -> None:
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            with disk_errors(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


WEIGHTS = ("alpha", "task_weight", "task", "distillation", "matching", "teacher_loss")
