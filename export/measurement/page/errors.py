"""The clips that a student gets wrong, worst first: with audio, and reference, teacher and students word under word."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from export.measurement.content import Clip, Section
from export.measurement.page.source import Source
from workbench.audio.player import flac_bytes, player
from workbench.core.errors import UserError, first_line
from workbench.evaluation.alignment import Column, Kind, align
from workbench.evaluation.scoring import clip_errors

MOST_CLIPS = 40  # that are shown of a corpus
OPEN_CLIPS = 10  # the others are folded away
MOST_STUDENTS = 6  # rows under a clip's reference, besides the teacher's
MOST_AUDIO_BYTES = 6_000_000  # of a page, before base64, which adds a third
LONGEST_WORDS = 12  # of a piece that is inserted: a loop would fill the page


@dataclass
class AudioBudget:
    """How much audio a page may hold, and for how many more corpora, which share it evenly."""

    most: int  # clips in the whole page
    corpora: int
    room: int = MOST_AUDIO_BYTES  # bytes that are left
    spent: int = 0  # clips

    def share(self) -> int:
        """Clips for the next corpus; to be asked for each, so that what one leaves goes to those after it."""
        mine = -(-(self.most - self.spent) // max(self.corpora, 1))
        self.corpora -= 1
        return mine

    def spend(self, flac: bytes) -> bool:
        """Whether a clip still has room; it is counted then."""
        if len(flac) > self.room:
            return False
        self.room -= len(flac)
        self.spent += 1
        return True


@dataclass(frozen=True)
class ClipErrors:
    """How wrong a clip's transcripts are."""

    clip: Clip
    student: int  # errors of the student that is looked at
    teacher: int
    length: int  # words or characters of the reference


def errors_of(section: Section, student: str) -> list[ClipErrors]:
    """Errors of a student and its teacher on every clip, in the report's order."""
    teacher, unit = section["systems"][0]["name"], section["corpus"]["headline"]
    out = []
    for clip in section["clips"]:
        ours, theirs = (
            clip_errors(clip["reference"], clip["hypotheses"][name], clip["language"], unit)
            for name in (student, teacher)
        )
        out.append(ClipErrors(clip, ours.total, theirs.total, ours.length))
    return out


def worst_first(clips: Sequence[ClipErrors]) -> list[ClipErrors]:
    """Clips on which the student has errors: those first where it has most more than the teacher, then by its errors."""
    wrong = [one for one in clips if one.student]
    return sorted(wrong, key=lambda w: (w.teacher - w.student, -w.student, w.clip["id"]))


def counted(clips: Sequence[ClipErrors]) -> str:
    """On how many clips a student has more, fewer and as many errors as its teacher, in words."""
    more, fewer = sum(c.student > c.teacher for c in clips), sum(c.student < c.teacher for c in clips)
    return f"more errors than the teacher on {more} clips, fewer on {fewer}, as many on {len(clips) - more - fewer}"


def errors_html(source: Source, section: Section, student: str, named: dict[str, str], budget: AudioBudget) -> str:
    """The errors of one corpus. `student` is the system that decides the order, `named` has a short name of each system to show."""
    share = budget.share()
    clips = errors_of(section, student)
    wrong = worst_first(clips)
    said = f"{named[student]} has {counted(clips)}."
    if not wrong:
        return f"<p>{html.escape(said)} It has no errors to show.</p>"
    sounds, why = _sounds(source, section, [one.clip["id"] for one in wrong[:MOST_CLIPS]], share, budget)
    rows = [_clip(one, section, named, sounds.get(one.clip["id"], "")) for one in wrong[:MOST_CLIPS]]
    some = len(wrong) > len(rows)
    shown = f"The {len(rows)} worst of {len(wrong)} clips with errors" if some else f"All {len(rows)} clips with errors"
    note = f"{said} {shown}, most errors beyond the teacher's first; every transcript is in report.json."
    if sounds and len(sounds) < len(rows):
        note += f" Only {len(sounds)} have audio: {why}."
    folded = (
        f"<details><summary>{len(rows) - OPEN_CLIPS} more clips</summary>{''.join(rows[OPEN_CLIPS:])}</details>"
        if len(rows) > OPEN_CLIPS
        else ""
    )
    missing = "" if sounds else f'<p class="missing">Audio is left out: {html.escape(why)}.</p>'
    return f"<p>{html.escape(note)}</p>{missing}{_KEY}{''.join(rows[:OPEN_CLIPS])}{folded}"


def _sounds(
    source: Source, section: Section, ids: Sequence[str], share: int, budget: AudioBudget
) -> tuple[dict[str, str], str]:
    """Players of the first of some clips, by id, and why the others have none."""
    if not budget.most:
        return {}, "this page was made without recordings; `workbench report` puts them in (--audio 20)"
    limit = f"the page holds at most {budget.most} clips and {MOST_AUDIO_BYTES / 1e6:g} MB of audio"
    if not share:
        return {}, limit
    utterances, why = source.clips(section)
    if not utterances:
        return {}, why
    out: dict[str, str] = {}
    full, absent = False, 0
    broken: list[str] = []
    for name in ids:
        if len(out) == share:
            full = True
            break
        if name not in utterances:
            absent += 1
            continue
        try:
            flac = flac_bytes(utterances[name].wave())
        except UserError as error:
            broken.append(first_line(error))
            continue
        if budget.spend(flac):
            out[name] = player(flac)
        else:
            full = True
    reasons = [limit] if full else []
    if absent:
        reasons.append(f"of {absent} the recording is not on this machine, or not the measured one")
    if broken:
        reasons.append(f"of {len(broken)} the recording cannot be read ({broken[0]})")
    return out, "; ".join(reasons)


_KEY = (
    '<p class="note">Words as they are scored: <span class="substitution">another word</span>, <span class="insertion">+ one too many</span>, '
    '<span class="deletion">– missing</span>.</p>'
)


def _clip(one: ClipErrors, section: Section, named: dict[str, str], sound: str) -> str:
    """A clip's box."""
    clip = one.clip
    names = list(named)
    columns = align(clip["reference"], [clip["hypotheses"][name] for name in names], clip["language"])
    heads = "".join(f"<i>{html.escape(name)}</i>" for name in ("reference", *named.values()))
    unit = "characters" if section["corpus"]["headline"] == "cer" else "words"
    errors = f"{unit} wrong: {one.student}, by the teacher {one.teacher}, of {one.length}; {clip['seconds']:.1f} s"
    raw = "".join(
        f"<br>{html.escape(name)}: {html.escape(text)}"
        for name, text in (("reference", clip["reference"]), *((named[n], clip["hypotheses"][n]) for n in names))
    )
    return (
        f'<div class="clip"><header><b>{html.escape(clip["id"])}</b><span>{errors}</span>{sound}</header>'
        f'<div class="aligned"><span class="names">{heads}</span>{"".join(map(_column, columns))}</div>'
        f"<details><summary>as written</summary>{raw[4:]}</details></div>\n"
    )


def _column(column: Column) -> str:
    texts = [_abridged(text) for text, _ in column.written]
    long = max(map(len, texts), default=0) > 24
    cells = "".join(_cell(text, kind) for text, (_, kind) in zip(texts, column.written, strict=True))
    return f"<span{' class=long' if long else ''}><i>{html.escape(column.reference)}</i>{cells}</span>"


def _cell(text: str, kind: Kind | None) -> str:
    if not kind:
        return f"<i>{html.escape(text)}</i>"
    sign = {"substitution": "", "insertion": "+ ", "deletion": "–"}[kind]
    return f'<i class="{kind}" title="{kind}">{sign}{html.escape(text)}</i>'


def _abridged(text: str) -> str:
    words: Sequence[str] = text.split()
    if len(words) <= LONGEST_WORDS:
        return text
    return f"{' '.join(words[:LONGEST_WORDS])} … ({len(words) - LONGEST_WORDS} more)"
