"""What a visitor preferred, counted with a binomial interval."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from demo.clip.transcribe import compare
from demo.corpus.run import CorpusRun
from workbench.core.errors import UserError
from workbench.evaluation.scoring import normalize

Choice = Literal["A", "B", "none"]
_appending = threading.Lock()  # visitors share the file


@dataclass(frozen=True)
class Pair:
    """Two different transcripts of a clip, in random order."""

    clip: int  # number in the split
    id: str
    language: str
    reference: str
    names: tuple[str, str]  # of A and B
    texts: tuple[str, str]


@dataclass(frozen=True)
class Preference:
    """What a visitor preferred of a pair."""

    pair: Pair
    choice: Choice

    @property
    def preferred(self) -> str:
        """Name of the preferred system; "" without a preference."""
        return "" if self.choice == "none" else self.pair.names["AB".index(self.choice)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self.pair), "choice": self.choice, "preferred": self.preferred}


@dataclass(frozen=True)
class Count:
    """How often one of two systems was preferred."""

    wins: int
    losses: int
    undecided: int
    interval: tuple[float, float] | None  # 95 %, exact (Clopper and Pearson), of the share of wins among decided ones
    p: float | None  # two-sided, against both being preferred equally often

    @property
    def decided(self) -> int:
        """Preferences for one of the two."""
        return self.wins + self.losses


def check_preferences_file(path: Path) -> None:
    """Raise UserError if preferences cannot be appended to a file: it is something else, or cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
        content = path.read_text("utf-8")
        ours = not content or (content.endswith("\n") and "choice" in json.loads(content.splitlines()[-1]))
    except OSError as error:
        raise UserError(f"--preferences {path}: {error.strerror}; choose another file") from None
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise UserError(
            f"--preferences {path}: holds something else than preferences, or its last line is cut off; choose another file"
        )


def append_preference(path: Path, preference: Preference) -> None:
    """Append a preference to a file as one line of JSON."""
    line = json.dumps(
        {"time": datetime.now(UTC).isoformat(timespec="seconds"), **preference.as_dict()}, ensure_ascii=False
    )
    with _appending, path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def count(preferences: Sequence[Preference], system: str, other: str) -> Count:
    """Count the preferences between two systems."""
    from scipy.stats import binomtest

    ours = [one for one in preferences if set(one.pair.names) == {system, other}]
    wins = sum(one.preferred == system for one in ours)
    losses = sum(one.preferred == other for one in ours)
    if not wins + losses:
        return Count(0, 0, len(ours), None, None)
    tested = binomtest(wins, wins + losses)
    bounds = tested.proportion_ci(0.95, "exact")
    return Count(wins, losses, len(ours) - wins - losses, (float(bounds.low), float(bounds.high)), float(tested.pvalue))


def draw_pair(
    run: CorpusRun,
    student: str,
    judged: set[int],
    chance: random.Random,
    most: int = 12,
) -> Pair | None:
    """A random clip on which a student and the teacher differ in their normalized texts.

    Args:
        run: the split, whose transcripts are used where it has them; others are made now.
        student: the student's name.
        judged: numbers of clips that are not drawn; those that turn out to have equal texts are added.
        chance: the source of randomness, for the clip and for the order.
        most: clips tried at most.

    Returns:
        The pair; None if none was found.
    """
    systems = run.systems
    known = {row.number: row.comparison for row in list(run.rows)}
    numbers = [n for n, clip in enumerate(run.clips) if n not in judged and clip.language in systems.languages]
    chance.shuffle(numbers)
    for number in numbers[:most]:
        clip = run.clips[number]
        comparison = known.get(number)
        if comparison is None:
            *_, comparison = compare(
                systems, clip.wave(), clip.text, clip.language, 1, [student, systems.teacher], False
            )
        outcomes = [comparison.outcomes[name] for name in (student, systems.teacher)]
        if any(one.problem for one in outcomes) or len({normalize(one.text, clip.language) for one in outcomes}) == 1:
            judged.add(number)
            continue
        chance.shuffle(outcomes)
        a, b = outcomes
        return Pair(number, clip.id, clip.language, clip.text, (a.name, b.name), (a.text, b.text))
    return None
