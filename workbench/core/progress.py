"""Progress of long work: a live bar with remaining time at a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 20.0


@cache
def console() -> Console:
    """The terminal: one for all bars and what is printed while they are drawn."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def live(display: Live | Bars) -> Iterator[None]:
    """Draw a rich Live or Progress at the terminal; log lines and warnings are printed above it.

    Rich takes stderr's place meanwhile, but log handlers, ours and the libraries', hold on to the stream that they were made with.
    """
    stream = sys.stderr
    display.start()
    named = (log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger))
    handlers = [
        handler
        for logger in (logging.root, *named)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream in (stream, sys.__stderr__)
    ]
    try:
        for handler in handlers:
            handler.setStream(sys.stderr)
        yield
    finally:
        display.stop()
        for handler in handlers:
            handler.setStream(stream)


def at_terminal() -> bool:
    """Whether a live display can be drawn on stderr; in a pipe or a file it would leave control characters."""
    return sys.stderr.isatty() and not console().is_dumb_terminal


@contextmanager
def step(what: str, *values: object) -> Iterator[None]:
    """A part of the work that cannot be counted: a line in the log when it begins, and a running clock at a terminal until it ends.

    Args:
        what: the line, with %-places for `values` as in logging.
        values: what stands in its places.
    """
    logging.getLogger("workbench").info(what, *values)
    with Progress(what % values if values else what, None):
        yield


def hide() -> None:
    """Draw no bar and print no line from now on."""
    Progress.hidden = True


class Progress:
    """A bar named after the work; silent on ranks that are not the main one. One begun within another is drawn below it.

    Where the total is not known beforehand (None), what is done is counted.
    """

    hidden = False  # in this process
    _shared: Bars | None = None  # rich's display, in which each bar that is drawn has a line
    _drawn = 0
    _stack = ExitStack()

    def __init__(self, name: str, total: int | None, shown: bool = True, done: int = 0) -> None:
        self.name, self.total, self.done = name, total, done
        self.shown = shown and not Progress.hidden
        self.first, self.started, self.spoke = done, time.monotonic(), time.monotonic()
        self.task: TaskID | None = None

    def __enter__(self) -> Progress:
        if self.shown and at_terminal():
            if Progress._shared is None:
                Progress._shared = _bars()
                Progress._stack.enter_context(live(Progress._shared))
            self.task = Progress._shared.add_task(self.name, total=self.total, completed=self.done, note="")
            Progress._drawn += 1
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done; `note` is shown beside the bar."""
        self.done = self.done + steps if self.total is None else min(self.done + steps, self.total)
        if Progress._shared is not None and self.task is not None:
            Progress._shared.update(self.task, completed=self.done, note=note)
        elif self.shown and (time.monotonic() - self.spoke > SECONDS_BETWEEN_LINES or self.done == self.total):
            self.spoke = time.monotonic()
            print(f"{self.name}: {self._so_far()}  {note}".rstrip(), file=sys.stderr, flush=True)  # noqa: T201

    def _so_far(self) -> str:
        if self.total is None:
            return f"{self.done}"
        pace = (time.monotonic() - self.started) / max(self.done - self.first, 1)
        return f"{self.done}/{self.total}, {pace * (self.total - self.done):.0f} s left"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if Progress._shared is None or self.task is None:
            return
        task, self.task = self.task, None
        Progress._drawn -= 1
        if Progress._drawn:
            Progress._shared.remove_task(task)
        else:
            Progress._stack.close()
            Progress._shared = None


def _bars() -> Bars:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        "left",
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    return Bars(*columns, console=console())
