"""The teacher and the students, opened once for all visitors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from export.assembly.teacher import teacher_bundle
from export.bundle.manifest import open_manifest
from export.edge import BundleError, Recognizer
from workbench.audio.decode import SAMPLE_RATE
from workbench.core.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
FEW = 8  # languages that a message lists


@dataclass
class Systems:
    """The teacher and the students, each opened once. The teacher comes first.

    Clips take turns: one system works at a time, on at most one 30 s window, first come, first served. So no time that is shown was
    measured while another system worked on a clip, and a long recording lets others in between its stretches. The live tab works in
    the threads of the systems themselves, so there a slow system does not delay the others.
    """

    recognizers: dict[str, Recognizer]
    threads: dict[str, ThreadPoolExecutor] = field(init=False)
    turns: ThreadPoolExecutor = field(init=False)
    # few threads, because each holds on to the memory of its longest recording
    decoding: ThreadPoolExecutor = field(init=False)
    closed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Start a thread for each system, one for whose turn it is, and the audio decoding threads."""
        self.threads = {name: ThreadPoolExecutor(1) for name in self.recognizers}
        self.turns = ThreadPoolExecutor(1)
        self.decoding = ThreadPoolExecutor(2)

    @property
    def teacher(self) -> str:
        """The teacher's name."""
        return next(iter(self.recognizers))

    @property
    def students(self) -> list[str]:
        """The students' names."""
        return list(self.recognizers)[1:]

    @property
    def languages(self) -> list[str]:
        """Codes of the languages that every system supports."""
        sets = [set(r.prompts) for r in self.recognizers.values()]
        return sorted(set.intersection(*sets))

    def turn(self, name: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in a system's thread when its turn has come, and wait for its result."""
        return self.turns.submit(lambda: self.threads[name].submit(work, *args, **kwargs).result()).result()

    def close(self) -> None:
        """Shut down the threads; queued work is cancelled."""
        self.closed = True
        for thread in (self.turns, *self.threads.values(), self.decoding):
            thread.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def open(
        bundles: Sequence[Path], teacher: str, precision: str | None, threads: int | None, vad: bool | None = None
    ) -> Systems:
        """Open bundles, with their speech detector unless `vad` is False; raises UserError for a damaged bundle, two of the same name, or no common language."""
        wanted = [(teacher_bundle(teacher), "fp32", "teacher, fp32"), *((bundle, precision, "") for bundle in bundles)]
        opened: dict[str, Recognizer] = {}
        try:
            for bundle, asked, role in wanted:
                manifest = open_manifest(bundle, check=not role)  # `teacher_bundle` has checked the teacher's
                chosen = asked or manifest.precisions[-1]
                name = f"{manifest.name} ({role or chosen})"
                if name in opened:
                    raise UserError(
                        f"{bundle}: a bundle named {name!r} is already shown; export it with another --name"
                    )
                opened[name] = Recognizer(bundle, chosen, threads, vad=vad)
            for (
                recognizer
            ) in opened.values():  # warm up: a graph's first run is slow and would distort the latency shown
                silence, language = np.zeros(SAMPLE_RATE, np.float32), next(iter(recognizer.prompts))
                recognizer.transcribe(silence, language)  # the detector
                recognizer.transcribe(silence, language, vad=False)
        except BundleError as error:
            raise UserError(str(error)) from None
        systems = Systems(opened)
        if not systems.languages:
            systems.close()
            each = "; ".join(f"{name}: {_languages(one)}" for name, one in opened.items())
            raise UserError(
                f"the systems have no language in common ({each}); show students of the teacher's languages"
            )
        return systems


def _languages(recognizer: Recognizer) -> str:
    codes = sorted(recognizer.prompts)
    return ", ".join(codes) if len(codes) <= FEW else f"{len(codes)} languages"
