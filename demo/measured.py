"""The page's header: what was measured of each student, from its bundle.json or the report.json beside it."""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.systems import Systems
from export.bundle.manifest import size_mb
from export.edge import Manifest
from workbench.core.errors import UserError
from workbench.core.files import read_json

EXPLAINED = "The times further down are measured on this machine, now."
DAMAGED = (UserError, LookupError, TypeError, ValueError, AttributeError)  # what a file of another form raises


@dataclass(frozen=True)
class Measured:
    """One student's figures on one corpus."""

    row: Mapping[str, Any]  # as in a manifest or a report
    corpus: Mapping[str, Any]
    host: str


def measured(manifest: Manifest, precision: str) -> Measured | None:
    """What is recorded of a bundle in one precision; None if it was never measured.

    A report.json beside the bundle counts only if it was made of the same graphs.
    """
    try:
        if (found := manifest.content.get("measurement")) is not None:
            for row in found["systems"]:
                if row["precision"] == precision:
                    return _checked(Measured(row, found["corpus"], found["host"]["cpu"]))
    except DAMAGED as error:
        logging.warning("the measurement in %s is not used: %s", manifest.folder / "bundle.json", error)
    return _report(manifest, precision)


def _report(manifest: Manifest, precision: str) -> Measured | None:
    path = manifest.folder.parent / "report.json"
    if not path.is_file():
        return None
    graphs = {path: manifest.content["files"].get(path) for path in manifest.content["precisions"][precision].values()}
    try:
        content = read_json(path, "a measurement report")
        for row in content["systems"]:
            made_of = row["graphs_sha256"]
            if row["precision"] == precision and made_of and all(graphs.get(g) == made_of[g] for g in made_of):
                float(row["wer"]), float(row["size_mb"]), float(row["latency_ms"]["p50"])
                return _checked(Measured(row, content["corpus"], str(content["host"]["cpu"])))
    except DAMAGED as error:
        logging.warning("%s is not used: %s", path, error)
    return None


def _checked(found: Measured) -> Measured:
    """The same, after everything that is shown of it has been formatted once; raises one of `DAMAGED` where it cannot."""
    _figures(found)
    _source(found)
    return found


def report_pages(systems: Systems) -> list[Path]:
    """The report.html beside each student's bundle, of those whose report.json is about that student, without repetition."""
    found = []
    for name in systems.students:
        recognizer = systems.recognizers[name]
        path = recognizer.manifest.folder.parent / "report.html"
        if path.is_file() and _report(recognizer.manifest, recognizer.precision) is not None:
            found.append(path)
    return list(dict.fromkeys(found))


def header(systems: Systems, corpus: str, note: str = "") -> str:
    """HTML of the table of figures, and what to run where there are none.

    Args:
        systems: those of the page.
        corpus: name of the corpus whose clips are shown.
        note: what is shown, in a sentence, where nobody chose it.
    """
    teacher = systems.recognizers[systems.teacher]
    teacher_mb = size_mb(teacher.manifest, teacher.precision)
    students, sources = [], []
    for name in systems.students:
        recognizer = systems.recognizers[name]
        size = size_mb(recognizer.manifest, recognizer.precision)
        figures = [("size", f"{size:.0f} MB", f"the teacher: {teacher_mb:.0f} MB")]
        found = measured(recognizer.manifest, recognizer.precision)
        if found is not None:
            figures += _figures(found)
            sources.append(_source(found))
        cells = "".join(
            f"<div><dt>{html.escape(what)}</dt><dd><b>{html.escape(value)}</b> <small>{html.escape(more)}</small></dd></div>"
            for what, value, more in figures
        )
        if found is None:
            cells += "<div><dt>speed-up, WER</dt><dd><small>not measured yet; run <code>workbench measure</code></small></dd></div>"
        students.append(f'<section class="measured"><h2>{html.escape(name)}</h2><dl>{cells}</dl></section>')
    links = "".join(
        f' <a href="report/{number}" target="_blank" rel="noopener">The whole report</a>.'
        for number, _ in enumerate(report_pages(systems))
    )
    about = " ".join(dict.fromkeys(sources))
    return (
        (f'<p class="note">{html.escape(note)}</p>' if note else "")
        + "".join(students)
        + f'<p class="about">{about} {EXPLAINED if sources else ""}{links} Clips on this page: {html.escape(corpus)}, split test.</p>'
    )


def _figures(found: Measured) -> list[tuple[str, str, str]]:
    """Name, value and remark of each figure."""
    row = found.row
    unit = "cer" if row.get("headline") == "cer" else "wer"
    rate, ci, difference = row.get(unit), row.get(f"{unit}_ci"), row.get(f"{unit}_difference")
    out = []
    if isinstance(row.get("speedup"), (int, float)):
        out.append(("speed-up", f"{row['speedup']:.1f} x", f"{row['latency_ms']['p50']:.0f} ms at the median"))
    if isinstance(rate, (int, float)):
        out.append(
            (unit.upper(), f"{rate:.2f} %", f"{ci[0]:.2f} to {ci[1]:.2f}" if ci else "too few clips for an interval")
        )
    if difference:
        bounds = difference.get("ci")
        interval = f"95 %: {bounds[0]:+.2f} to {bounds[1]:+.2f}" if bounds else "too few clips for an interval"
        out.append((f"{unit.upper()} against the teacher", f"{difference['points']:+.2f} points", interval))
    return out


def _source(found: Measured) -> str:
    corpus = found.corpus
    return html.escape(
        f"Measured on {corpus['clips']} clips of {corpus['name']}, split {corpus['split']}, on {found.host}."
    )
