"""Latency of several systems on the same clips, interleaved: every clip goes to each system in turn.

Each system runs in its own process (so load time and memory are its own), waits while the others work, and gets the same number of threads.
Other load on the machine then affects all alike: ratios hold even if absolute times drift.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import TypedDict, cast

from export.measurement.decoding import GREEDY, Decoding
from workbench.core.errors import UserError
from workbench.core.machine.children import end_with_parent
from workbench.core.machine.memory import peak_resident_mb
from workbench.evaluation.scoring import is_loop, normalize

STAGES = ("decode", "detector", "features", "encoder", "first_token", "rest", "detokenize")


def total_ms(stages_ms: Mapping[str, float]) -> float:
    """Latency of a clip, from file to text: the sum of its stages."""
    return sum(stages_ms.values())


@dataclass(frozen=True)
class System:
    """A bundle in one precision."""

    name: str
    kind: str  # teacher or student
    bundle: Path
    precision: str
    decoding: Decoding = GREEDY


@dataclass
class BenchmarkResult:
    """A system's hypotheses and timings, clip by clip."""

    hypotheses: list[str] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    looped: list[bool] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    load_ms: float = 0.0
    peak_rss_mb: float = 0.0

    def loops(self, references: Mapping[int, tuple[str, str]]) -> int:
        """Number of looping clips: stopped by the runtime, or with a looping text. `references` maps clip numbers to reference and language."""
        return sum(
            self.looped[i] or is_loop(normalize(self.hypotheses[i], language), normalize(text, language))
            for i, (text, language) in references.items()
        )

    @property
    def total_ms(self) -> list[float]:
        """Latency of each clip, from file to text."""
        return [total_ms(stages) for stages in self.stages_ms]

    def part(self, clips: slice) -> BenchmarkResult:
        """The result on some of the clips; load time and memory are those of the whole run."""
        lists = {
            name: getattr(self, name)[clips] for name in ("hypotheses", "stages_ms", "finished", "looped", "tokens")
        }
        return replace(self, **lists)

    def stopped_by_cap(self, clips: Iterable[int]) -> int:
        """How many of these clips reached the token limit."""
        return sum(not self.finished[i] and not self.looped[i] for i in clips)


class _Said(TypedDict):
    """What a system's process answers of a clip."""

    text: str
    finished: bool
    looped: bool
    tokens: int
    stages_ms: dict[str, float]


def time_systems(
    systems: Sequence[System],
    wavs: Sequence[tuple[Path, str]],
    threads: int,
    warmup: int = 2,
    repeats: int = 1,
    progress: Callable[[int], None] = lambda _: None,
    vad: bool | None = None,
) -> list[BenchmarkResult]:
    """Transcribe clips with every system, one system at a time, clip by clip.

    Args:
        systems: what to compare.
        wavs: 16 kHz WAV files and their languages.
        threads: number of threads of each system's runtime.
        warmup: clips that each system transcribes first, untimed.
        repeats: passes over each clip; the run with the median total time is kept.
        progress: called with the number of transcriptions finished since the last call.
        vad: whether the runtime runs its speech detector first; None: its default.

    Raises:
        UserError: a system failed or its process died.
    """
    context = multiprocessing.get_context("spawn")  # a forked onnxruntime would share its parent's thread pools
    workers = [_Worker(context, system, threads, vad) for system in systems]
    try:
        found = [BenchmarkResult(load_ms=worker.ready()) for worker in workers]
        for wav, language in wavs[:warmup]:
            for worker in workers:
                worker.transcribe(wav, language)
        for wav, language in wavs:
            runs = [[worker.transcribe(wav, language) for worker in workers] for _ in range(repeats)]
            for i, timed in enumerate(found):
                _keep(timed, [run[i] for run in runs])
            progress(len(systems) * repeats)
        for timed, worker in zip(found, workers, strict=True):
            timed.peak_rss_mb = worker.peak_rss_mb()
    finally:
        for worker in workers:
            worker.stop()
    return found


def _keep(timed: BenchmarkResult, runs: Sequence[_Said]) -> None:
    """Keep the run with the median total time, so that its stages add up to it."""
    chosen = sorted(runs, key=lambda run: sum(run["stages_ms"].values()))[len(runs) // 2]
    timed.hypotheses.append(chosen["text"])
    timed.stages_ms.append({k: round(v, 3) for k, v in chosen["stages_ms"].items()})
    timed.finished.append(chosen["finished"])
    timed.looped.append(chosen["looped"])
    timed.tokens.append(chosen["tokens"])


class _Worker:
    """The parent's end of a system's process."""

    def __init__(self, context: SpawnContext, system: System, threads: int, vad: bool | None) -> None:
        self.system = system
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child, system, threads, vad), daemon=True)
        self.process.start()
        child.close()

    def ready(self) -> float:
        """Wait until the system is loaded; returns the load time in ms."""
        return cast("float", self._answer()["load_ms"])

    def transcribe(self, wav: Path, language: str) -> _Said:
        """Transcribe one clip."""
        self.pipe.send((str(wav), language))
        return cast("_Said", self._answer())

    def peak_rss_mb(self) -> float:
        """Largest resident memory so far, in MB (10^6 bytes)."""
        self.pipe.send(None)
        return cast("float", self._answer()["peak_rss_mb"])

    def _answer(self) -> dict[str, object]:
        try:
            answer: dict[str, object] = self.pipe.recv()
        except EOFError:
            self.process.join(5)
            raise UserError(
                f"{self.system.name}: its process ended with exit status {self.process.exitcode}; it may have run out of memory"
            ) from None
        if "error" in answer:
            raise UserError(f"{self.system.name}: {answer['error']}")
        return answer

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(2)
        if self.process.is_alive():
            self.process.kill()


def _serve(pipe: Connection, system: System, threads: int, vad: bool | None) -> None:
    """Load a bundle and answer requests, in a process that never imports torch."""
    from export.edge import AudioError, BundleError, Recognizer, read_wav

    end_with_parent()
    try:
        started = time.perf_counter()
        # the parent has checked it
        recognizer = Recognizer(system.bundle, system.precision, threads, check=False, frugal=True, vad=vad)
        beams, lm = system.decoding.beams, system.decoding.opened(recognizer)
        pipe.send({"load_ms": 1000 * (time.perf_counter() - started)})
        while True:
            request = pipe.recv()
            if request is None:
                pipe.send({"peak_rss_mb": peak_resident_mb()})
                continue
            started = time.perf_counter()
            wave = read_wav(request[0])
            decode_ms = 1000 * (time.perf_counter() - started)
            out = recognizer.transcribe(wave, request[1], beams, lm=lm)
            stages = {"decode": decode_ms, **{stage: out.stages_ms.get(stage, 0.0) for stage in STAGES[1:]}}
            stages["rest"] += out.stages_ms.get("beams", 0.0)  # the search of a model with a CTC head
            said = {"text": out.text, "finished": out.finished, "looped": out.looped, "tokens": len(out.tokens)}
            pipe.send({**said, "stages_ms": stages})
    except EOFError:
        return  # the parent has closed the pipe
    except KeyboardInterrupt:
        return  # Ctrl-C reaches the whole process group; the parent reports it
    except (AudioError, BundleError) as error:
        pipe.send({"error": str(error)})
