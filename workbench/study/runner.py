"""All runs of a study, a few at a time, each in its own process; one that fails does not stop the others."""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.errors import UserError
from workbench.core.files import read_json
from workbench.core.locks import output_lock
from workbench.core.machine.children import killed_with_parent
from workbench.core.progress import at_terminal, console, live
from workbench.study.current import discard_stale
from workbench.study.plan import Study, Trial, trials

if TYPE_CHECKING:
    from rich.live import Live

log = logging.getLogger("workbench")


def run_study(study: Study, file: Path, parallel: int, chosen: list[Trial]) -> None:
    """Run what is not done yet of some trials, `parallel` at a time, which share the processor's cores.

    Results that are stale are removed first, and the reason is logged.

    Raises:
        UserError: another process runs the study, or one of its stale runs; after all others are done, if any run failed (its log says why).
    """
    with output_lock(study.output):
        _run_study(study, file, parallel, chosen)


def _run_study(study: Study, file: Path, parallel: int, chosen: list[Trial]) -> None:
    for trial in chosen:
        with output_lock(study.output / trial.name):
            discard_stale(study, trial)
    todo = [trial for trial in chosen if not result_file(study, trial).is_file()]
    log.info("%d of %d runs are done", len(chosen) - len(todo), len(chosen))
    failed: list[Trial] = []
    table = LiveTable(study, chosen)
    free: queue.SimpleQueue[frozenset[int]] = queue.SimpleQueue()  # cores of the runs that are not running
    for cores in shared_out(parallel):
        free.put(cores)
    with ThreadPoolExecutor(parallel) as pool, table:
        running: dict[Future[int], Trial] = {}
        waiting = list(todo)
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    trial = waiting.pop(0)
                    running[pool.submit(_run, study, file, trial, parallel, free)] = trial
                    table.show(list(running.values()))
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    trial = running.pop(future)
                    if future.result():
                        failed.append(trial)
                        log.warning("%s failed: %s", trial.name, reason(study, trial))
                    table.show(list(running.values()))
        except KeyboardInterrupt:
            waiting.clear()  # the processes have been interrupted, too, and can be resumed
            raise
    if failed:
        each = "; ".join(f"{trial.name}: {reason(study, trial)}" for trial in failed)
        raise UserError(
            f"{len(failed)} of {len(chosen)} runs failed ({each}); their log.txt says more; run the study again to go on"
        )


def result_file(study: Study, trial: Trial) -> Path:
    """Where a run's result is."""
    return study.output / trial.name / "result.json"


def reason(study: Study, trial: Trial) -> str:
    """The last line of a failed run's log."""
    lines = (study.output / trial.name / "log.txt").read_text("utf-8", "replace").split("\n")
    return next(
        (line.strip()[:300] for line in reversed(lines) if line.strip()), "it was killed before it wrote anything"
    )


def failed_before(study: Study, chosen: Sequence[Trial]) -> list[Trial]:
    """Runs that have begun and have no result; those of a study that is running now are among them."""
    return [t for t in chosen if (study.output / t.name / "log.txt").is_file() and not result_file(study, t).is_file()]


def shared_out(parallel: int) -> list[frozenset[int]]:
    """Cores for each of so many runs at a time; none, for no limit, where there is one run, fewer cores than runs, or a system that cannot pin.

    Beside other programs the scheduler may leave two runs on one core; and threads that wait for each other lose time where another program takes one of their cores.
    """
    if parallel == 1 or not hasattr(os, "sched_setaffinity"):
        return [frozenset()] * parallel
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // parallel
    return [frozenset(cores[i * each : (i + 1) * each]) for i in range(parallel)]


def _run(study: Study, file: Path, trial: Trial, parallel: int, free: queue.SimpleQueue[frozenset[int]]) -> int:
    folder = study.output / trial.name
    folder.mkdir(parents=True, exist_ok=True)
    cores = free.get()
    threads = len(cores) or max(1, (os.cpu_count() or 1) // parallel)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if parallel > 1 else dict(os.environ)
    options = ["--student", trial.student, "--corpus", trial.corpus, "--arm", trial.arm, "--seed", str(trial.seed)]
    with (folder / "log.txt").open("w", encoding="utf-8") as out:
        command = [sys.executable, "-m", "workbench", "study", str(file), *options]
        try:
            with subprocess.Popen(killed_with_parent(command), env=environment, stdout=out, stderr=out) as process:
                if cores:
                    os.sched_setaffinity(process.pid, cores)  # its threads, which start later, inherit it
                return process.wait()
        finally:
            free.put(cores)


class LiveTable:
    """Live table of a study: runs done and their mean WER so far, one row per arm and one column per corpus."""

    def __init__(self, study: Study, chosen: list[Trial]) -> None:
        self.study, self.chosen = study, chosen
        self.live: Live | None = None
        self.stack = ExitStack()
        self.started = time.monotonic()
        self.first = self._done()

    def _done(self) -> int:
        return sum(result_file(self.study, trial).is_file() for trial in self.chosen)

    def __enter__(self) -> LiveTable:
        if at_terminal():
            from rich.live import Live
            from rich.table import Table

            self.live = Live(Table(), console=console(), auto_refresh=False)
            self.stack.enter_context(live(self.live))
        return self

    def show(self, running: list[Trial]) -> None:
        """Redraw it; in a log, write one line."""
        done = self._done()
        pace = (time.monotonic() - self.started) / max(done - self.first, 1)
        left = pace * (len(self.chosen) - done) if done > self.first else float("nan")
        note = (
            f"{done}/{len(self.chosen)} runs, about {left / 60:.0f} min left"
            if left == left
            else f"{done}/{len(self.chosen)} runs"
        )
        if self.live is None:
            log.info("%s; running %s", note, ", ".join(trial.name for trial in running) or "nothing")
            return
        from rich.table import Table

        columns = list(dict.fromkeys((c.student, c.corpus) for c in trials(self.study)))
        table = Table("arm", *(f"{corpus}\n{student}" for student, corpus in columns), title=note)
        for arm in self.study.arms:
            row = []
            for student, corpus in columns:
                own = [Trial(student, corpus, arm, seed) for seed in self.study.seeds]
                files = [result_file(self.study, c) for c in own]
                wers = [read_json(f, "a result")[self.study.split]["wer"] for f in files if f.is_file()]
                mean = f" {sum(wers) / len(wers):.1f} %" if wers else ""
                busy = " …" if any(c in running for c in own) else ""
                row.append(f"{len(wers)}/{len(own)}{mean}{busy}")
            table.add_row(arm, *row)
        self.live.update(table, refresh=True)

    def __exit__(self, *_: object) -> None:
        self.stack.close()
