"""A hundred kills at random moments of every long command: is anything lost, is the result the same, is anything left?

    OMP_NUM_THREADS=1 python benchmarks/kills.py --json FILE

Commands run on tiny models and are killed with SIGKILL. After every kill the same command is run again; now and then that run
is killed, too. When it has come to its end, what it wrote is compared byte for byte with what a run wrote that nobody killed
(times apart), and no process of it, no `.part` and no lock may be left. Lost is what was finished before a kill and is gone
after it. Then each command is started twice on one output: one has to work, the other to say so and leave. The file is written
after every kill, and a benchmark that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from common import ROOT, arguments, finish
from kills_jobs import JOBS, Job, prepare

AGAIN = 0.25  # share of the runs after a kill that are killed, too
LEAVING = 10.0  # seconds that a killed command's children may take to end
LONGEST = 300.0  # seconds that a command may take


def main() -> None:
    """Kill every command its share of times, two commands at a time."""
    args = arguments(__doc__, kills=(100, "in all"), seed=(1, "of the moments"), parallel=(2, "commands at a time"),
                     only=("", "these commands, joined by commas"))  # fmt: skip
    chosen = [job for job in JOBS if not args.only or job.name in args.only.split(",")]
    book = Book(args.json, {"kills": args.kills, "seed": args.seed, "only": args.only})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, environment(folder, folder / "cache"))
        shares = [args.kills // len(chosen) + (i < args.kills % len(chosen)) for i in range(len(chosen))]
        with ThreadPoolExecutor(args.parallel) as pool:
            work = [
                pool.submit(Killing(job, folder, book, args.seed), n) for job, n in zip(chosen, shares, strict=True)
            ]
        for one in work:
            one.result()
    book.write()
    figures = book.figures()
    finish(None, figures, [])
    good = figures["identical"] and not any(figures[k] for k in ("lost", "left", "children_left", "failed"))
    sys.exit(0 if good and figures["second_refused"] else "something was lost, left or different; see the runs")


class Book:
    """The runs so far, in the JSON file."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings, self.lock = path, settings, threading.Lock()
        self.runs: list[dict[str, Any]] = []
        if path is not None and path.is_file():
            known = json.loads(path.read_text())
            if known.get("settings") == settings:
                self.runs = known["runs"]

    def add(self, **run: Any) -> None:
        """Note what happened, and write the file."""
        with self.lock:
            self.runs.append(run)
            print({k: v for k, v in run.items() if k != "same"}, flush=True)
            self.write()

    def of(self, command: str, what: str) -> list[dict[str, Any]]:
        """The runs of a command that were killed, came to their end, or met another."""
        return [r for r in self.runs if r["command"] == command and r["what"] == what]

    def write(self) -> None:
        """Write the file, with this machine's description."""
        from workbench.core.files import write_json
        from workbench.core.machine.host import describe_host

        if self.path is not None:
            shown = " ".join(f"--{k} {v}" for k, v in self.settings.items() if v)
            content = {"figures": self.figures(), "host": describe_host(), "settings": self.settings}
            write_json(self.path, {**content, "command": f"python benchmarks/kills.py {shown}", "runs": self.runs})

    def figures(self) -> dict[str, float]:
        """What is claimed."""
        ended = [r for r in self.runs if r["what"] == "ended"]
        met = [r for r in self.runs if r["what"] == "two at once"]
        return {
            "kills": float(sum(r["what"] == "killed" for r in self.runs)),
            "lost": float(sum(r["lost"] for r in self.runs if r["what"] == "killed")),
            "children_left": float(sum(r["children_left"] for r in self.runs if r["what"] == "killed")),
            "failed": float(sum(r["status"] != 0 for r in ended)),
            "ended": float(len(ended)),
            "identical": float(all(all(r["same"].values()) for r in ended)),
            "left": float(sum(len(r["left"]) for r in ended)),
            "second_refused": float(all(r["one_worked"] and r["one_said_so"] for r in met)),
        }


class Killing:
    """One command's kills."""

    def __init__(self, job: Job, folder: Path, book: Book, seed: int) -> None:
        self.job, self.inputs, self.book, self.seed = job, folder, book, seed
        self.whole, self.killed = folder / job.name / "whole", folder / job.name / "killed"

    def __call__(self, kills: int) -> None:
        """Kill it until it has been killed so many times, then let two meet."""
        if (count := len(self.book.of(self.job.name, "killed"))) < kills:
            begins, seconds = self._undisturbed()
            done, before = 0, self._begin()
            while count < kills or done:
                tries = len(self.book.of(self.job.name, "ended"))  # a moment too near the end is not drawn for ever
                draw = random.Random(f"{self.seed} {self.job.name} {count} {tries}")
                again = done == 0 or draw.random() < AGAIN
                # from shortly before it holds its output, since what comes earlier only imports
                after = begins + draw.uniform(-0.05, 1.0) * (seconds - begins) if again and count < kills else None
                started = time.perf_counter()
                found = self._run(after)
                if found is None and after is not None:
                    seconds = max(begins + 0.2, time.perf_counter() - started)  # other work on the machine has ended
                if found is None:  # it came to its end
                    done, before = 0, self._begin()
                    continue
                now = self.job.progress(self.killed)
                self.book.add(command=self.job.name, what="killed", number=count, after_seconds=round(after or 0, 2),
                              of_seconds=round(seconds, 2), children=found[0], children_left=found[1],
                              progress=now, lost=sum(max(0, b - n) for b, n in zip(before, now, strict=True)))  # fmt: skip
                count, done, before = count + 1, done + 1, now
        if not self.book.of(self.job.name, "two at once"):
            self._two_at_once()

    def _begin(self) -> list[int]:
        shutil.rmtree(self.killed, ignore_errors=True)
        self.killed.mkdir(parents=True)
        return self.job.progress(self.killed)

    def _command(self, folder: Path) -> tuple[list[str], dict[str, str]]:
        program = [sys.executable, "-m", "workbench", *self.job.arguments(self.inputs, folder)]
        return program, environment(self.inputs, folder / "cache")

    def _undisturbed(self) -> tuple[float, float]:
        """Run it whole; returns the seconds until it holds its output, and until its end."""
        shutil.rmtree(self.whole, ignore_errors=True)
        self.whole.mkdir(parents=True)
        command, env = self._command(self.whole)
        lock, begins = self.job.lock(self.whole), None
        started = time.perf_counter()
        with (self.whole.parent / "stderr").open("w+") as errors:
            process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=errors)
            while process.poll() is None:
                time.sleep(0.005)
                if begins is None and lock is not None and lock.is_file():
                    begins = time.perf_counter() - started
            if process.returncode:
                errors.seek(0)
                raise SystemExit(f"{self.job.name}: {errors.read()[-2000:]}")
        seconds = time.perf_counter() - started
        return begins or 0.4 * seconds, seconds

    def _run(self, kill_after: float | None) -> tuple[int, int] | None:
        """Run it; returns how many children a kill found and left, or None if it came to its end, which is noted."""
        command, env = self._command(self.killed)
        with (self.killed.parent / "stderr").open("w+") as errors:
            process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=errors)
            try:
                process.wait(kill_after or LONGEST)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGSTOP)  # so that it starts no child while they are counted
                children = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                process.wait()
                if kill_after is None:
                    raise SystemExit(f"{self.job.name} hangs") from None
                _, alive = psutil.wait_procs(children, LEAVING)
                for child in alive:
                    child.kill()
                return len(children), len(alive)
            errors.seek(0)
            said = errors.read()
        self.book.add(command=self.job.name, what="ended", status=process.returncode, left=left_in(self.killed),
                      **({"said": said[-500:], "same": {}} if process.returncode else
                         {"same": self.job.compare(self.whole, self.killed)}))  # fmt: skip
        return None

    def _two_at_once(self) -> None:
        """Stop one as soon as its lock is there, let another try, and let the first one go on.

        The first may be stopped between making the file and locking it: then the other works, and the first one is refused.
        """
        self._begin()
        command, env = self._command(self.killed)
        lock = self.job.lock(self.killed)
        if lock is None:
            return
        first = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while first.poll() is None and not lock.is_file():
            time.sleep(0.002)
        first.send_signal(signal.SIGSTOP)
        second = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=LONGEST)
        first.send_signal(signal.SIGCONT)
        first_said = first.communicate()[1]
        ends = {first.returncode: first_said, second.returncode: second.stderr}
        said = ends.get(2, "").strip().splitlines()[-1:]
        self.book.add(command=self.job.name, what="two at once", one_worked=0 in ends,
                      one_said_so="another process is at work" in "".join(said),
                      said=[line.replace(str(self.killed), "FOLDER") for line in said])  # fmt: skip


def environment(inputs: Path, cache: Path) -> dict[str, str]:
    """That of a command: a cache of its own, the engine that beeps, this checkout, one thread."""
    path = f"{inputs / 'engine'}{os.pathsep}{ROOT}"
    return {**os.environ, "WORKBENCH_CACHE": str(cache), "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "500"}


def left_in(folder: Path) -> list[str]:
    """What should not lie there once a command has come to its end."""
    found = [p for p in folder.rglob("*") if p.name.endswith((".part", ".old", ".lock", ".journal"))]
    return sorted(p.relative_to(folder).as_posix() for p in found)


if __name__ == "__main__":
    main()
