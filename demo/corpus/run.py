"""A whole split transcribed once by every system, for all visitors together."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from demo.clip.transcribe import Comparison, compare
from demo.systems import Systems
from workbench.core.errors import UserError
from workbench.corpus import Utterance
from workbench.evaluation.alignment import KINDS, Kind
from workbench.evaluation.scoring import Errors, clip_errors, headline, paired_difference, score


@dataclass(frozen=True, eq=False)  # compared by identity, which is quick: what is drawn of a row is cached
class Row:
    """One clip that every system has transcribed."""

    number: int  # of the clip, which is also its audio's address
    clip: Utterance
    comparison: Comparison
    errors: dict[str, Errors]  # by system, in the split's unit

    def count(self, system: str, kind: Kind | None = None) -> int:
        """A system's errors in the clip, of one kind or all."""
        found = self.errors[system]
        of_kind = {"substitution": found.substitutions, "deletion": found.deletions, "insertion": found.insertions}
        return found.total if kind is None else of_kind[kind]


@dataclass
class CorpusRun:
    """The run of a split; each clip is a turn among the visitors' own clips. What is transcribed stays until the server ends.

    Args:
        systems: those of the page.
        clips: the split.
    """

    systems: Systems
    clips: Sequence[Utterance]
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # why a clip has no row
    at: int = 0  # clips done
    wanted: int = 0  # clips to do
    paused: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None
    _scoring: threading.Lock = field(default_factory=threading.Lock)  # held while scores are computed, for all who wait
    _summary: tuple[int, list[dict[str, Any]]] = (0, [])  # of so many rows

    def start(self, clips: int) -> None:
        """Go on until so many clips are done, in a thread; a run that is going on is extended."""
        with self.lock:
            going_on = self.at if self.paused else self.wanted
            self.wanted, self.paused = max(going_on, min(clips, len(self.clips))), False
            if self._thread is None and self.at < self.wanted:
                self._thread = threading.Thread(target=self._run, name="corpus", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End after the clip at hand; `start` goes on from there."""
        with self.lock:
            self.paused = self.at < self.wanted

    @property
    def unit(self) -> str:
        """`wer`, or `cer` if some language of the split does not separate words: what all its errors are counted in."""
        return headline([clip.language for clip in self.clips if clip.language in self.systems.languages])

    @property
    def running(self) -> bool:
        """Whether clips are being transcribed."""
        return self._thread is not None

    def _run(self) -> None:
        while True:
            with self.lock:
                if self.at >= self.wanted or self.paused or self.systems.closed:
                    self._thread = None
                    return
                number = self.at
            try:
                row = self._row(number)
            except UserError as error:
                row, why = None, str(error)
            except Exception:
                logging.exception("clip %d of the split", number)
                row, why = None, f"{self.clips[number].id}: failed; the server's log says why"
            with self.lock:
                self.at += 1
                if self.at >= self.wanted:  # paused during the last clip
                    self.paused = False
                if row is None:
                    self.skipped.append(why)
                else:
                    self.rows.append(row)

    def _row(self, number: int) -> Row:
        clip = self.clips[number]
        if clip.language not in self.systems.languages:
            raise UserError(f"{clip.id}: no system of this page supports its language, {clip.language}")
        wave = clip.wave()
        *_, comparison = compare(self.systems, wave, clip.text, clip.language, runs=1)
        errors = {}
        for name, outcome in comparison.outcomes.items():
            if outcome.problem:
                raise UserError(f"{clip.id}: {name}: {outcome.problem}")
            counted = clip_errors(clip.text, outcome.text, clip.language, self.unit)
            if not counted.length:
                raise UserError(f"{clip.id}: its reference has no words once it is normalized")
            errors[name] = counted
        return Row(number, clip, comparison, errors)

    def worst(self, system: str, kind: Kind | None = None) -> list[Row]:
        """Clips in which a system has errors of a kind (or any), most errors per word first."""
        with self.lock:
            rows = list(self.rows)
        return _worst_first([row for row in rows if row.count(system, kind)], system, kind)

    def summary(self, lag: float = 0.0) -> list[dict[str, Any]]:
        """Each system's scores over the clips done: rate, interval, counts of errors by kind, difference from the teacher.

        Args:
            lag: share of the clips that may be missing from the scores. Intervals take long, so who asks again and again should allow for some.
        """
        with self._scoring:
            with self.lock:
                rows = list(self.rows)
            scored = self._summary[0]
            if len(rows) - scored > lag * scored:
                self._summary = len(rows), self._scores(rows)
            return self._summary[1]

    def _scores(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        references, languages = [row.clip.text for row in rows], [row.clip.language for row in rows]
        unit = self.unit
        texts = {n: [row.comparison.outcomes[n].text for row in rows] for n in self.systems.recognizers}
        out = []
        for name, said in texts.items():
            scored = score(references, said, languages)
            entry: dict[str, Any] = {"name": name, "unit": unit, **scored.as_dict(), "headline": unit}
            entry["kinds"] = {kind: sum(row.count(name, kind) for row in rows) for kind in KINDS}
            if name != self.systems.teacher:
                entry["difference"] = paired_difference(
                    references, said, texts[self.systems.teacher], languages, unit=unit
                )
            out.append(entry)
        return out

    def as_json(self) -> dict[str, Any]:
        """What is known so far, worst clips of the first student first."""
        system = (self.systems.students or [self.systems.teacher])[0]
        with self.lock:
            rows, at, skipped = list(self.rows), self.at, list(self.skipped)
        return {
            "clips": len(self.clips),
            "done": at,
            "skipped": skipped,
            "systems": self.summary(),
            "worst_first": [
                {
                    "id": row.clip.id,
                    "reference": row.clip.text,
                    "language": row.clip.language,
                    "texts": {name: one.text for name, one in row.comparison.outcomes.items()},
                    "errors": {name: {kind: row.count(name, kind) for kind in KINDS} for name in row.errors},
                }
                for row in _worst_first(rows, system)
            ],
        }


def _worst_first(rows: Sequence[Row], system: str, kind: Kind | None = None) -> list[Row]:
    """Most errors of a kind per word first."""
    return sorted(rows, key=lambda row: (-row.count(system, kind) / row.errors[system].length, row.number))
