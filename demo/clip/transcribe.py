"""A clip transcribed by every system, students first, several times each; and what comes of comparing them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from demo.systems import Systems
from export.edge import AudioError, BundleError, Hotwords, Recognizer, Segment, Transcript, Word
from workbench.audio.decode import LONGEST_SECONDS, SAMPLE_RATE, Wave, check_length, decode, is_silent
from workbench.core.errors import UserError
from workbench.evaluation.scoring import Errors, clip_errors, headline

RUNS = 3  # of each system on a clip; an odd number, so that one of them is the median
STAGES = ("detector", "features", "encoder", "decoder")  # as they are shown
_SHOWN_AS = {"detector": "detector", "features": "features", "encoder": "encoder"}  # the runtime's others: decoder


@dataclass(frozen=True)
class Outcome:
    """What one system wrote of a clip, and how long each of its runs took."""

    name: str
    text: str = ""
    words: tuple[Word, ...] = ()  # with their times; empty where the bundle cannot tell them
    segments: tuple[Segment, ...] = ()  # stretches of speech of a long recording, or the whole clip
    runs: tuple[dict[str, float], ...] = ()  # each one's ms by stage, without the pass that finds word times
    complete: bool = True  # False if the decoder stopped at its token limit, or repeated itself
    problem: str = ""  # why this system has no transcript

    @property
    def stages_ms(self) -> dict[str, float]:
        """Stages of the run with the median latency, which add up to it; of an even number of runs, the mean of the two in the middle."""
        ordered = sorted(self.runs, key=lambda run: sum(run.values()))
        middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
        stages = dict.fromkeys(stage for run in middle for stage in run)
        return {stage: sum(run.get(stage, 0.0) for run in middle) / len(middle) for stage in stages}

    @property
    def latency_ms(self) -> float:
        """Median over the runs."""
        return sum(self.stages_ms.values())

    @property
    def runs_ms(self) -> list[float]:
        """All stages together, of each run."""
        return [sum(run.values()) for run in self.runs]


@dataclass(frozen=True)
class Comparison:
    """A clip's transcripts so far, the teacher's first; a system that has not answered yet is missing."""

    teacher: str
    seconds: float
    language: str
    reference: str  # as it stands; "" if unknown
    runs: int  # of each system when all is done
    outcomes: dict[str, Outcome]
    waiting: tuple[str, ...] = ()  # systems without an answer yet
    done: bool = True  # False while runs are missing

    def speedup(self, name: str) -> float | None:
        """The teacher's median latency divided by a system's; None while either is missing."""
        teacher, ours = self.outcomes.get(self.teacher), self.outcomes.get(name)
        if teacher is None or ours is None or not teacher.runs or not ours.runs:
            return None
        return teacher.latency_ms / max(ours.latency_ms, 1e-3)

    def errors(self, name: str) -> Errors | None:
        """A system's edits against the reference, of words or, where a language does not separate them, characters; None without a reference."""
        ours = self.outcomes.get(name)
        if not self.reference or ours is None or ours.problem:
            return None
        found = clip_errors(self.reference, ours.text, self.language, headline(self.language))
        return found if found.length else None


def load_clip(path: Path, longest: float) -> Wave:
    """Decode an upload or recording of at most `longest` seconds; raises a one-line UserError if it cannot be used."""
    wave = decode(path, path.name, longest)
    if seconds(wave) <= LONGEST_SECONDS:
        check_length(wave, path.name)
    if is_silent(wave):
        raise UserError(f"{path.name}: is silent; check the microphone, or choose another recording")
    return wave


def compare(
    systems: Systems,
    wave: Wave,
    reference: str,
    language: str,
    runs: int = RUNS,
    names: Sequence[str] | None = None,
    words: bool = True,
    hotwords: Sequence[str] = (),
) -> Iterator[Comparison]:
    """Transcribe a clip with each system in turn, students first; yields what is known after each run.

    Args:
        systems: those of the page.
        wave: [samples] at 16 kHz; more than 30 s is split at pauses, in the same way for every system, and run once.
        reference: the reference transcript, or "" if unknown.
        language: ISO 639-1 code.
        runs: of each system; each one's second run follows the first run of all others.
        names: the systems to run, all by default.
        words: also compute word times where the bundle can.
        hotwords: names and terms to expect, given to every system.

    Raises:
        UserError: a system cannot write the hotwords.
    """
    wanted = [name for name in (*systems.students, systems.teacher) if names is None or name in names]
    runs = 1 if seconds(wave) > LONGEST_SECONDS else runs
    found: dict[str, Outcome] = {}
    ready = _ready_hotwords(systems, wanted, hotwords)
    for number in range(runs):
        for place, name in enumerate(wanted):
            outcome = _timed(systems, name, wave, language, words and number == 0, ready.get(name))
            before = found.get(name)
            if before is None:
                found[name] = outcome
            elif not before.problem and not outcome.problem:
                found[name] = replace(before, runs=before.runs + outcome.runs)
            waiting = tuple(wanted[place + 1 :]) if number == 0 else ()
            ordered = {one: found[one] for one in systems.recognizers if one in found}
            last = number == runs - 1 and place == len(wanted) - 1
            yield Comparison(systems.teacher, seconds(wave), language, reference, runs, ordered, waiting, last)


def _ready_hotwords(systems: Systems, names: Sequence[str], words: Sequence[str]) -> dict[str, Hotwords]:
    """Hotwords for each system; raises UserError where one cannot write them."""
    if not words:
        return {}
    try:
        return {name: systems.turn(name, systems.recognizers[name].new_hotwords, words) for name in names}
    except BundleError as error:
        raise UserError(str(error)) from None


def _timed(systems: Systems, name: str, wave: Wave, language: str, words: bool, hotwords: Hotwords | None) -> Outcome:
    """One run of one system; what goes wrong becomes the outcome's problem, so that the others still answer."""
    recognizer = systems.recognizers[name]
    words = words and recognizer.times_words
    try:
        segments = _segments(systems, name, recognizer, wave, language, words, hotwords)
    except (AudioError, BundleError) as error:
        return Outcome(name, problem=str(error))
    except Exception:
        if systems.closed:  # what was waiting for its turn is cancelled; that is no bug
            return Outcome(name, problem="The server is stopping.")
        logging.exception("%s failed on a clip", name)
        return Outcome(name, problem="This system failed on this clip; the server's log says why.")
    stages: dict[str, float] = {}
    for segment in segments:
        for stage, ms in segment.transcript.stages_ms.items():
            if stage != "words":
                shown = _SHOWN_AS.get(stage, "decoder")
                stages[shown] = stages.get(shown, 0.0) + ms
    said = [segment.transcript for segment in segments]
    return Outcome(
        name,
        text=" ".join(one.text for one in said if one.text),
        words=tuple(word for one in said for word in one.words),
        segments=tuple(segments),
        runs=(stages,),
        complete=all(one.finished and not one.looped for one in said),
    )


def _segments(
    systems: Systems, name: str, recognizer: Recognizer, wave: Wave, language: str, words: bool,
    hotwords: Hotwords | None,
) -> list[Segment]:  # fmt: skip
    """Transcribe a short clip in one turn, a long recording stretch by stretch, one turn each."""
    if seconds(wave) <= recognizer.window:
        said: Transcript = systems.turn(name, recognizer.transcribe, wave, language, words=words, hotwords=hotwords)
        return [Segment(0.0, seconds(wave), said)]
    segments = recognizer.segments(wave, language, words=words, hotwords=hotwords)
    return list(iter(lambda: systems.turn(name, next, segments, None), None))


def seconds(wave: Wave) -> float:
    """Length of a wave in seconds."""
    return len(wave) / SAMPLE_RATE
