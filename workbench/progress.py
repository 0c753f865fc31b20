"""Progress of long work: a live bar with remaining time at a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """A bar named after the work; silent on ranks that are not the main one."""

    def __init__(self, name: str, total: int, shown: bool = True, done: int = 0) -> None:
        self.name, self.total, self.shown, self.done = name, total, shown, done
        self.first, self.started, self.spoke = done, time.monotonic(), time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if self.shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                "{task.description}",
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                "left",
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self.task = self.bar.add_task(self.name, total=self.total, completed=self.done, note="")
            self.bar.start()
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done; `note` is shown beside the bar."""
        self.done = min(self.done + steps, self.total)
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, note=note)
        elif self.shown and (time.monotonic() - self.spoke > SECONDS_BETWEEN_LINES or self.done == self.total):
            self.spoke = time.monotonic()
            pace = (self.spoke - self.started) / max(self.done - self.first, 1)
            left = pace * (self.total - self.done)
            line = f"{self.name}: {self.done}/{self.total}, {left:.0f} s left  {note}"
            print(line.rstrip(), file=sys.stderr, flush=True)  # noqa: T201

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
