"""The page's logic, without the page: systems opened once, a clip transcribed by each, word errors counted."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from demo.difference import as_html, differences
from export.assembly.teacher import teacher_bundle
from export.bundle.manifest import open_manifest
from export.edge import AudioError, BundleError, Recognizer, Transcript
from workbench.audio.decode import LONGEST_SECONDS, SAMPLE_RATE, Wave, check_length, decode, is_silent
from workbench.core.errors import UserError
from workbench.evaluation.scoring import normalize, word_errors

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """One system's result on one clip."""

    name: str
    text: str
    latency_ms: float
    stages_ms: dict[str, float]
    speedup: float  # the teacher's latency divided by this one's
    coloured: str  # HTML
    compared_with: str  # "reference", "teacher", or "" for the teacher itself without a reference
    running_wer: float | None  # over this session's clips with a reference


@dataclass
class Systems:
    """The teacher and the students, each opened once. The teacher comes first.

    Each has a thread shared by all visitors: first come, first served, for at most one 30 s window at a time. So a long recording lets
    others in between its segments, and a slow system does not delay the others.
    """

    recognizers: dict[str, Recognizer]
    threads: dict[str, ThreadPoolExecutor] = field(init=False)
    decoding: ThreadPoolExecutor = field(
        init=False
    )  # few threads, because each holds on to the memory of its longest recording

    def __post_init__(self) -> None:
        """Start a thread for each system, and the audio decoding threads."""
        self.threads = {name: ThreadPoolExecutor(1) for name in self.recognizers}
        self.decoding = ThreadPoolExecutor(2)

    def turn(self, name: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in a system's thread and wait for its result."""
        return self.threads[name].submit(work, *args, **kwargs).result()

    def close(self) -> None:
        """Shut down the threads; queued work is cancelled."""
        for thread in (*self.threads.values(), self.decoding):
            thread.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def open(
        bundles: Sequence[Path], teacher: str, precision: str | None, threads: int | None, vad: bool | None = None
    ) -> Systems:
        """Open bundles, with their speech detector unless `vad` is False; raises UserError for a damaged bundle or two of the same name."""
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
        return Systems(opened)

    @property
    def languages(self) -> list[str]:
        """Languages that every system supports."""
        sets = [set(r.prompts) for r in self.recognizers.values()]
        return sorted(set.intersection(*sets))


@dataclass
class RunningWer:
    """Word errors of each system in a visitor's session."""

    errors: dict[str, int] = field(default_factory=dict)
    words: int = 0


def load_clip(path: Path, longest: float) -> Wave:
    """Decode an upload or recording of at most `longest` seconds; raises a one-line UserError if it cannot be used."""
    wave = decode(path, path.name, longest)
    if seconds(wave) <= LONGEST_SECONDS:
        check_length(wave, path.name)
    if is_silent(wave):
        raise UserError(f"{path.name}: is silent; check the microphone, or choose another recording")
    return wave


def compare(systems: Systems, wave: Wave, reference: str, language: str, tally: RunningWer) -> list[Result]:
    """Transcribe a clip with each system in turn.

    Args:
        systems: teacher first.
        wave: [samples] at 16 kHz; more than 30 s is split at pauses, in the same way for every system.
        reference: the reference transcript, or "" if unknown; students are then compared with the teacher.
        language: ISO 639-1 code.
        tally: updated with this clip's word errors if there is a reference.

    Raises:
        UserError: the wave cannot be used, or a system does not support the language.
    """
    results: list[Result] = []
    transcripts = {}
    for name in systems.recognizers:
        try:
            transcripts[name] = _transcribed(systems, name, wave, language)
        except (AudioError, BundleError) as error:
            raise UserError(str(error)) from None
    teacher = next(iter(transcripts.values()))
    wanted = normalize(reference, language)
    if wanted:
        tally.words += len(wanted.split())
    for name, transcript in transcripts.items():
        if wanted:
            wrong = word_errors(wanted, normalize(transcript.text, language)).total
            tally.errors[name] = tally.errors.get(name, 0) + wrong
        standard, compared = (
            (reference, "reference") if wanted else (teacher.text, "teacher" if transcript is not teacher else "")
        )
        results.append(
            Result(
                name=name,
                text=transcript.text,
                latency_ms=transcript.latency_ms,
                stages_ms=transcript.stages_ms,
                speedup=teacher.latency_ms / max(transcript.latency_ms, 1e-3),  # 0 if no speech was detected
                coloured=as_html(differences(standard, transcript.text, language))
                if compared
                else html.escape(transcript.text),
                compared_with=compared,
                running_wer=100 * tally.errors[name] / tally.words if tally.words else None,
            )
        )
    return results


def _transcribed(systems: Systems, name: str, wave: Wave, language: str) -> Transcript:
    """Transcribe a short clip in one turn, a long recording segment by segment, one turn each, then joined."""
    recognizer = systems.recognizers[name]
    if seconds(wave) <= recognizer.window:
        return systems.turn(name, recognizer.transcribe, wave, language)
    segments = recognizer.segments(wave, language)
    parts = [segment.transcript for segment in iter(lambda: systems.turn(name, next, segments, None), None)]
    stages: dict[str, float] = {}
    for part in parts:
        for stage, ms in part.stages_ms.items():
            stages[stage] = stages.get(stage, 0.0) + ms
    text = " ".join(part.text for part in parts if part.text)
    tokens = tuple(token for part in parts for token in part.tokens)
    finished, looped = all(p.finished for p in parts), any(p.looped for p in parts)
    return Transcript(text, parts[0].language if parts else language, tokens, stages, finished, looped)


def seconds(wave: Wave) -> float:
    """Length of a wave in seconds."""
    return len(wave) / SAMPLE_RATE
