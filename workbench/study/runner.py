"""All runs of a study, some at a time, each in a process of its own; one that fails does not stop the others."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from workbench.core.children import ending_with_us
from workbench.core.errors import UserError
from workbench.core.files import read_json
from workbench.core.locks import claimed
from workbench.core.progress import at_terminal, console, live
from workbench.study.current import discard_void
from workbench.study.plan import Cell, Study, cells

log = logging.getLogger("workbench")


def run_study(study: Study, file: Path, parallel: int, chosen: list[Cell]) -> None:
    """Run what is not done yet of some cells, `parallel` at a time, which share the processor's cores.

    Results that are not of the study as it stands are removed first, with the reason.

    Raises:
        UserError: another process runs the study, or one of its runs that is void; after all others are done, if any run failed (its
            log says why).
    """
    with claimed(study.output):
        _run_study(study, file, parallel, chosen)


def _run_study(study: Study, file: Path, parallel: int, chosen: list[Cell]) -> None:
    for cell in chosen:
        with claimed(study.output / cell.name):
            discard_void(study, cell)
    todo = [cell for cell in chosen if not result_file(study, cell).is_file()]
    log.info("%d of %d runs are done", len(chosen) - len(todo), len(chosen))
    failed: list[Cell] = []
    board = Board(study, chosen)
    with ThreadPoolExecutor(parallel) as pool, board:
        running: dict[Future[int], Cell] = {}
        waiting = list(todo)
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    cell = waiting.pop(0)
                    running[pool.submit(_run, study, file, cell, parallel)] = cell
                    board.show(list(running.values()))
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    cell = running.pop(future)
                    if future.result():
                        failed.append(cell)
                        log.warning("%s failed; see %s", cell.name, study.output / cell.name / "log.txt")
                    board.show(list(running.values()))
        except KeyboardInterrupt:
            waiting.clear()  # the processes have been interrupted, too, and can be resumed
            raise
    if failed:
        first = study.output / failed[0].name / "log.txt"
        raise UserError(f"{len(failed)} run(s) failed, the first is {failed[0].name}; see {first}, then run again")


def result_file(study: Study, cell: Cell) -> Path:
    """Where a run leaves what it came to."""
    return study.output / cell.name / "result.json"


def _run(study: Study, file: Path, cell: Cell, parallel: int) -> int:
    folder = study.output / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // parallel)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if parallel > 1 else dict(os.environ)
    options = ["--student", cell.student, "--corpus", cell.corpus, "--arm", cell.arm, "--seed", str(cell.seed)]
    with (folder / "log.txt").open("w", encoding="utf-8") as out:
        command = [sys.executable, "-m", "workbench", "study", str(file), *options]
        return subprocess.run(ending_with_us(command), env=environment, stdout=out, stderr=out, check=False).returncode


class Board:
    """Live table of a study: runs done and their mean WER so far, an arm a row, a corpus a column."""

    def __init__(self, study: Study, chosen: list[Cell]) -> None:
        self.study, self.chosen = study, chosen
        self.live: Any = None
        self.stack = ExitStack()
        self.started = time.monotonic()
        self.first = self._done()

    def _done(self) -> int:
        return sum(result_file(self.study, cell).is_file() for cell in self.chosen)

    def __enter__(self) -> Board:
        if at_terminal():
            from rich.live import Live
            from rich.table import Table

            self.live = Live(Table(), console=console(), auto_refresh=False)
            self.stack.enter_context(live(self.live))
        return self

    def show(self, running: list[Cell]) -> None:
        """Draw it anew; in a log, one line."""
        done = self._done()
        pace = (time.monotonic() - self.started) / max(done - self.first, 1)
        left = pace * (len(self.chosen) - done) if done > self.first else float("nan")
        note = (
            f"{done}/{len(self.chosen)} runs, about {left / 60:.0f} min left"
            if left == left
            else f"{done}/{len(self.chosen)} runs"
        )
        if self.live is None:
            log.info("%s; running %s", note, ", ".join(cell.name for cell in running) or "nothing")
            return
        from rich.table import Table

        columns = list(dict.fromkeys((c.student, c.corpus) for c in cells(self.study)))
        table = Table("arm", *(f"{corpus}\n{student}" for student, corpus in columns), title=note)
        for arm in self.study.arms:
            row = []
            for student, corpus in columns:
                own = [Cell(student, corpus, arm, seed) for seed in self.study.seeds]
                files = [result_file(self.study, c) for c in own]
                wers = [read_json(f, "a result")[self.study.split]["wer"] for f in files if f.is_file()]
                mean = f" {sum(wers) / len(wers):.1f} %" if wers else ""
                busy = " …" if any(c in running for c in own) else ""
                row.append(f"{len(wers)}/{len(own)}{mean}{busy}")
            table.add_row(arm, *row)
        self.live.update(table, refresh=True)

    def __exit__(self, *_: object) -> None:
        self.stack.close()
