"""A run of a split as HTML: scores, and the worst clips with every transcript aligned to the reference."""

from __future__ import annotations

import functools
import html
from collections.abc import Sequence
from typing import Any

from demo.clip.difference import as_html, differences
from demo.corpus.run import CorpusRun, Row
from workbench.evaluation.alignment import KINDS, Kind, edits, units
from workbench.evaluation.scoring import FEWEST_CLIPS, normalize

SHOWN = 25  # clips at a time; a page of hundreds is slow on a phone
LAG = 0.05  # share of the clips that the scores of a run that is going on may lack
BODIES = 2000  # entries kept, of a few kilobytes each


def summary_html(run: CorpusRun) -> str:
    """Each system's scores so far."""
    scores = run.summary(LAG if run.running else 0.0)
    if not scores:
        return ""
    rows = "".join(_summary_row(entry) for entry in scores)
    unit = scores[0]["unit"].upper()
    heads = (
        "system",
        f"{unit} %",
        "95 % interval",
        "substitutions",
        "deletions",
        "insertions",
        "points from the teacher",
    )
    head = "".join(f'<th scope="col">{one}</th>' for one in heads)
    skipped = f'<p class="note">Not counted: {html.escape("; ".join(run.skipped[:5]))}</p>' if run.skipped else ""
    return f'<div class="scroll" tabindex="0" role="group" aria-label="scores"><table class="plain"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{skipped}'


def _summary_row(entry: dict[str, Any]) -> str:
    interval = entry[f"{entry['unit']}_ci"]
    difference, apart = entry.get("difference"), ""
    if difference:
        ci = difference["ci"]
        apart = f"{difference['points']:+.2f}" + (f" ({ci[0]:+.2f} to {ci[1]:+.2f})" if ci else "")
    cells = [
        f"{entry[entry['unit']]:.2f}",
        f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else f"from {FEWEST_CLIPS} clips on",
        *(str(entry["kinds"][kind]) for kind in KINDS),
        apart,
    ]
    return f'<tr><th scope="row">{html.escape(entry["name"])}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def progress_html(run: CorpusRun) -> str:
    """How far the run is, as a bar and in words."""
    if not run.wanted:
        return ""
    if run.running:
        state = "pausing after this clip …" if run.paused else "transcribing …"
    else:
        state = "paused" if run.paused else "done"
    return (
        f'<progress max="{run.wanted}" value="{run.at}" aria-label="clips transcribed"></progress> '
        f"{run.at} of {run.wanted} clips, {state}; the split has {len(run.clips)}"
    )


def worst_html(run: CorpusRun, system: str, kind: Kind | None, shown: int = SHOWN) -> str:
    """The clips in which a system has errors of a kind, worst first, each to open, to listen to and to compare."""
    rows = run.worst(system, kind)
    what = "errors" if kind is None else f"{kind}s"
    if not rows:
        return f"<p>No {what} of {html.escape(system)} in the clips done so far.</p>" if run.rows else ""
    more = f" The first {shown} are shown." if len(rows) > shown else ""
    counted = " Errors are counted in characters." if run.unit == "cer" else ""
    clips = "1 clip" if len(rows) == 1 else f"{len(rows)} clips"
    out = [f"<p>{clips} with {what} of {html.escape(system)}, worst first.{more}{counted}</p>"]
    out += [entry_html(run, row, system) for row in rows[:shown]]
    return "".join(out)


def entry_html(run: CorpusRun, row: Row, system: str) -> str:
    """One clip."""
    errors = row.errors[system]
    kinds = ", ".join(
        f"{row.count(system, kind)} {kind}{'s' * (row.count(system, kind) != 1)}"
        for kind in KINDS
        if row.count(system, kind)
    )
    language = html.escape(row.clip.language)
    text = row.clip.text if len(row.clip.text) <= 90 else row.clip.text[:89] + "…"
    body = _body(row, (*run.systems.students, run.systems.teacher))
    return (
        f'<details class="entry" data-entry="{row.number}"><summary><b>{100 * errors.total / errors.length:.0f} %</b> ({kinds}) '
        f'<span lang="{language}">{html.escape(text)}</span> <small>{row.clip.seconds:.1f} s</small></summary>{body}</details>'
    )


@functools.lru_cache(maxsize=BODIES)
def _body(row: Row, names: tuple[str, ...]) -> str:
    """What an entry shows when it is opened; kept, because a list is drawn again and again while a run goes on."""
    language = html.escape(row.clip.language)
    said = "".join(
        f'<p><b>{html.escape(name)}</b></p><div class="said" lang="{language}" dir="auto" role="group" aria-label="transcript of {html.escape(name)}">'
        + (
            as_html(
                differences(row.clip.text, (one := row.comparison.outcomes[name]).text, row.clip.language, one.words)
            )
            or "<i>nothing</i>"
        )
        + "</div>"
        for name in names
    )
    return (
        f'<audio controls preload="none" src="clip/{row.number}.wav" aria-label="clip {html.escape(row.clip.id)}"></audio>'
        f"{said}{aligned_html(row, names)}"
    )


def aligned_html(row: Row, names: Sequence[str]) -> str:
    """The normalized reference and all transcripts in columns: what the error rate counts."""
    language = row.clip.language
    wanted = units(normalize(row.clip.text, language), language)
    # of each system: what it has for each unit of the reference, and what it inserted before it
    instead: dict[str, dict[int, tuple[str, Kind | None]]] = {}
    inserted: dict[str, dict[int, list[str]]] = {}
    for name in names:
        said = units(normalize(row.comparison.outcomes[name].text, language), language)
        at = 0
        for edit in edits(wanted, said):
            if edit.wanted is not None:
                instead.setdefault(name, {})[edit.wanted] = ("" if edit.said is None else said[edit.said], edit.kind)
                at = edit.wanted + 1
            elif edit.said is not None:
                inserted.setdefault(name, {}).setdefault(at, []).append(said[edit.said])
    columns = [_column(["reference", *names], "names")]
    for place in range(len(wanted) + 1):
        extra = max((len(inserted.get(name, {}).get(place, [])) for name in names), default=0)
        for i in range(extra):
            cells = [inserted.get(name, {}).get(place, [])[i : i + 1] for name in names]
            columns.append(
                _column(["", *(_mark(cell[0], "insertion") if cell else "" for cell in cells)], escaped=True)
            )
        if place < len(wanted):
            cells_at = [instead.get(name, {}).get(place, ("", "deletion")) for name in names]
            columns.append(
                _column([html.escape(wanted[place]), *(_mark(text, kind) for text, kind in cells_at)], escaped=True)
            )
    return (
        f'<p class="about">As compared: normalized, aligned with the reference.</p>'
        f'<div class="aligned" lang="{html.escape(language)}" role="group" aria-label="alignment: reference, {html.escape(", ".join(names))}">{"".join(columns)}</div>'
    )


def _mark(text: str, kind: Kind | None) -> str:
    if kind is None:
        return html.escape(text)
    if kind == "deletion":
        return '<del class="deletion" title="deletion">&nbsp;–&nbsp;</del>'
    return f'<mark class="{kind}" title="{kind}">{html.escape(text)}</mark>'


def _column(cells: Sequence[str], classes: str = "", escaped: bool = False) -> str:
    inner = "".join(f"<span>{(cell if escaped else html.escape(cell)) or '&nbsp;'}</span>" for cell in cells)
    return f'<span class="column {classes}">{inner}</span>'
