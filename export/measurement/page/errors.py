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
    """How much audio a page may still hold, and for how many more corpora, which share it evenly."""

    clips: int
    corpora: int
    room: int = MOST_AUDIO_BYTES  # bytes

    def share(self) -> int:
        """Clips for the next corpus."""
        mine = -(-self.clips // max(self.corpora, 1))
        self.corpora -= 1
        return mine

    def spend(self, flac: bytes) -> bool:
        """Whether a clip still has room; it is counted then."""
        if len(flac) > self.room:
            return False
        self.room -= len(flac)
        self.clips -= 1
        return True


@dataclass(frozen=True)
class WrongClip:
    """A clip that the student has errors on."""

    clip: Clip
    student: int  # errors of the student that is looked at
    teacher: int
    length: int  # words or characters of the reference


def wrong_clips(section: Section, student: str) -> list[WrongClip]:
    """Clips on which a student has errors: those first where it has most more than the teacher, then by its errors."""
    teacher, unit = section["systems"][0]["name"], section["corpus"]["headline"]
    out = []
    for clip in section["clips"]:
        ours, theirs = (
            clip_errors(clip["reference"], clip["hypotheses"][name], clip["language"], unit)
            for name in (student, teacher)
        )
        if ours.total:
            out.append(WrongClip(clip, ours.total, theirs.total, ours.length))
    return sorted(out, key=lambda w: (w.teacher - w.student, -w.student, w.clip["id"]))


def counted(section: Section, student: str) -> str:
    """On how many clips a student has more, fewer and as many errors as its teacher, in words."""
    teacher, unit = section["systems"][0]["name"], section["corpus"]["headline"]
    more = fewer = 0
    for clip in section["clips"]:
        ours, theirs = (
            clip_errors(clip["reference"], clip["hypotheses"][name], clip["language"], unit).total
            for name in (student, teacher)
        )
        more, fewer = more + (ours > theirs), fewer + (ours < theirs)
    same = len(section["clips"]) - more - fewer
    return f"more errors than the teacher on {more} clips, fewer on {fewer}, as many on {same}"


def errors_html(source: Source, section: Section, student: str, named: dict[str, str], budget: AudioBudget) -> str:
    """The errors of one corpus. `student` is the system that decides the order, `named` has a short name of each system to show."""
    wrong = wrong_clips(section, student)
    said = f"{named[student]} has {counted(section, student)}."
    if not wrong:
        return f"<p>{html.escape(said)} It has no errors to show.</p>"
    share = budget.share()
    sounds, why = _sounds(source, section, [one.clip["id"] for one in wrong[:MOST_CLIPS]], share, budget)
    rows = [_clip(one, section, named, sounds.get(one.clip["id"], "")) for one in wrong[:MOST_CLIPS]]
    some = len(wrong) > len(rows)
    shown = f"The {len(rows)} worst of {len(wrong)} clips with errors" if some else f"All {len(rows)} clips with errors"
    note = f"{said} {shown}, most errors beyond the teacher's first; every transcript is in report.json."
    if sounds and len(sounds) < len(rows):
        note += f" Only {len(sounds)} have audio, so that the page stays small."
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
    """Players of the first of some clips, by id, and why there is none if there is none."""
    if not share:
        return {}, "the page was made without, or already holds as much as it may"
    utterances, why = source.clips(section)
    out: dict[str, str] = {}
    for name in ids:
        if len(out) == share:
            break
        if name in utterances:
            try:
                flac = flac_bytes(utterances[name].wave())
            except UserError as error:
                why = first_line(error)
                continue
            if budget.spend(flac):
                out[name] = player(flac)
    return out, why or "no recording of these clips is here"


_KEY = (
    '<p class="note">Words as they are scored: <span class="substitution">another word</span>, <span class="insertion">+ one too many</span>, '
    '<span class="deletion">– missing</span>.</p>'
)


def _clip(one: WrongClip, section: Section, named: dict[str, str], sound: str) -> str:
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


def _cell(text: str, kind: Kind) -> str:
    if not kind:
        return f"<i>{html.escape(text)}</i>"
    sign = {"substitution": "", "insertion": "+ ", "deletion": "–"}[kind]
    return f'<i class="{kind}" title="{kind}">{sign}{html.escape(text)}</i>'


def _abridged(text: str) -> str:
    words: Sequence[str] = text.split()
    if len(words) <= LONGEST_WORDS:
        return text
    return f"{' '.join(words[:LONGEST_WORDS])} … ({len(words) - LONGEST_WORDS} more)"
