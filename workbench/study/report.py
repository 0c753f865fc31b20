"""A study's results for people: a table in the terminal, Markdown, a page with plots, and the transcripts behind them."""

from __future__ import annotations

import gzip
import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from workbench.core.atomic import atomic_path
from workbench.core.errors import UserError
from workbench.core.files import write_json, write_text
from workbench.core.html_page import html_page, html_table
from workbench.core.plots import FAINT, INK, SERIES, as_svg, new_figure
from workbench.core.tables import print_rows
from workbench.study.arm import teacher_scores
from workbench.study.current import read_results
from workbench.study.plan import Study, Trial
from workbench.study.results import ALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLIPS = ("ids", "references", "languages", "speakers")  # of a result's clips
FIGURES = ("validation", "seconds", "peak_mb", "steps", "host", "inputs")  # of a run


def write(study: Study, chosen: list[Trial], results: dict[str, Any]) -> list[Path]:
    """Write study.json, hypotheses.jsonl.gz, study.md and study.html into the study's folder; returns their paths."""
    paths = [study.output / name for name in ("study.json", "hypotheses.jsonl.gz", "study.html", "study.md")]
    write_json(paths[0], results)
    with atomic_path(paths[1]) as temporary, gzip.GzipFile(temporary, "wb", mtime=0) as file:
        for row in kept_rows(study, chosen):
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    write_text(paths[2], page(study, results))
    write_text(paths[3], markdown(study, results))
    return paths


def kept_rows(study: Study, chosen: list[Trial]) -> Iterator[dict[str, Any]]:
    """All that the table is computed from: the clips of each corpus once, then every run's transcripts and figures, then the teacher's."""
    found = read_results(study, chosen)
    seen: set[str] = set()
    for trial, result in found.items():
        also = result.get("test_also", {})
        for corpus, said in {trial.corpus: result[study.split], **also}.items():
            if corpus not in seen:
                seen.add(corpus)
                clips = {key: said[key] for key in CLIPS if key in said}
                yield {"corpus": corpus, "split": study.split, "clips": clips}
        row = {**trial.__dict__, "hypotheses": result[study.split]["hypotheses"]}
        row |= {"test_also": {corpus: said["hypotheses"] for corpus, said in also.items()}} if also else {}
        yield {**row, **{key: result[key] for key in FIGURES}}
    for corpus in seen:
        if (said := teacher_scores(study, corpus)) is not None:
            yield {"corpus": corpus, "teacher": said["name"], "hypotheses": said["hypotheses"]}


def read_kept(paths: Sequence[Path]) -> tuple[dict[Trial, dict[str, Any]], dict[str, dict[str, Any]]]:
    """What `kept_rows` gave, from one or several files of the same study: results by run, and the teacher's transcripts by corpus.

    Raises:
        UserError: the files do not agree on a corpus's clips.
    """
    clips: dict[str, dict[str, Any]] = {}
    split: dict[str, str] = {}
    found: dict[Trial, dict[str, Any]] = {}
    teachers: dict[str, dict[str, Any]] = {}
    for path in paths:
        for line in gzip.decompress(path.read_bytes()).decode().split("\n"):
            row = json.loads(line) if line else {}
            if "references" in row:
                raise UserError(f"{path}: was written by an earlier version; scripts/rescore.py reads such files")
            if "clips" in row:
                known = clips.setdefault(row["corpus"], row["clips"])
                if any(known[key] != row["clips"][key] for key in ("ids", "references")):
                    raise UserError(f"{path}: has other clips of {row['corpus']} than the files before it")
                split[row["corpus"]] = row["split"]
            elif "arm" in row:
                trial = Trial(row["student"], row["corpus"], row["arm"], row["seed"])
                said = {**clips[trial.corpus], "hypotheses": row["hypotheses"]}
                found[trial] = {**{key: row[key] for key in FIGURES}, split[trial.corpus]: said}
                also = row.get("test_also", {})
                found[trial]["test_also"] = {c: {**clips[c], "hypotheses": texts} for c, texts in also.items()}
            elif row:
                corpus = row["corpus"]
                teachers[corpus] = {**clips[corpus], "name": row["teacher"], "hypotheses": row["hypotheses"]}
    return found, teachers


def print_table(study: Study, results: dict[str, Any]) -> None:
    """The table in the terminal, lowest mean CER first."""
    for teacher in of_all(results["teacher"]):
        typer.echo(
            f"teacher {teacher['name']} on {teacher['corpus']}: WER {teacher['wer']:.2f} %, CER {shown_cer(teacher):.2f} %"
        )
    for student, corpus in dict.fromkeys((row["student"], row["corpus"]) for row in results["arms"]):
        shown = [cells_of(study, row) for row in rows_of(results, student, corpus)]
        title = f"{corpus}, {student}: {results['split']}, mean of the seeds (lowest to highest)"
        print_rows(columns_of(study), shown, title)
    if compared := comparisons_of(study, results):
        print_rows(COMPARED, compared, "other comparisons, CER")


def markdown(study: Study, results: dict[str, Any]) -> str:
    """The same as Markdown, one table per corpus."""
    out = [f"Split: {results['split']}. Runs: {results['runs']}. Command: `{results['command']}`.\n"]
    teachers = {teacher["corpus"]: teacher for teacher in of_all(results["teacher"])}
    for student, corpus in dict.fromkeys((row["student"], row["corpus"]) for row in results["arms"]):
        said = teachers.get(corpus)
        note = f"; teacher: WER {said['wer']:.2f} %, CER {shown_cer(said):.2f} %" if said else ""
        out += [f"\n**{corpus}, {student}**{note}\n", "|".join(["", *columns_of(study), ""]), "|---" * 9 + "|"]
        out += ["|".join(["", *cells_of(study, row), ""]) for row in rows_of(results, student, corpus)]
    if compared := comparisons_of(study, results):
        out += ["\n**Other comparisons**\n", "|".join(["", *COMPARED, ""]), "|---" * len(COMPARED) + "|"]
        out += ["|".join(["", *row, ""]) for row in compared]
    return "\n".join(out) + "\n"


COMPARED = ("corpus", "group", "arm", "minus", "CER", "95 % interval", "p (Holm)", "shows")


def comparisons_of(study: Study, results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the comparisons with other arms than the baseline, and those by group; the primary ones say what they show."""
    shows = {(c["student"], c["corpus"], c["arm"], c["against"]): c for c in results.get("primary", [])}
    rows: list[tuple[str, ...]] = []
    for row in results["arms"]:
        for other in study.compared_with(row["name"]):
            primary = shows.get((row["student"], row["corpus"], row["name"], other)) if row["group"] == ALL else None
            in_table = other == study.baseline and row["group"] == ALL and primary is None
            if f"vs_{other}" not in row or in_table:
                continue
            versus = row[f"vs_{other}"]
            p = (primary or versus).get("p_holm_cer")
            rows.append(
                (row["corpus"], row["group"], row["name"], other, f"{versus['delta_cer']:+.2f}", _interval(versus),
                 "" if p is None else f"{p:.3f}", primary["shows"] if primary and "shows" in primary else "")
            )  # fmt: skip
    return rows


def shown_cer(row: dict[str, Any]) -> Any:
    """The CER that arms are compared by: capped, where the study caps the errors of a clip."""
    return row.get("cer_capped", row["cer"])


def of_all(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows over all clips, not those of a group of languages."""
    return [row for row in rows if row["group"] == ALL]


def columns_of(study: Study) -> tuple[str, ...]:
    """Heads of the table."""
    return (
        "arm",
        "WER %",
        "CER %, capped" if study.cap_errors else "CER %",
        f"CER vs {study.baseline}",
        "95 % interval",
        "p (Holm)",
        "loops",
        "train s",
        "peak MB",
    )


def rows_of(results: dict[str, Any], student: str, corpus: str) -> list[dict[str, Any]]:
    """Arms of one corpus, lowest mean CER first."""
    rows = [row for row in of_all(results["arms"]) if (row["student"], row["corpus"]) == (student, corpus)]
    return sorted(rows, key=lambda row: float(np.mean(shown_cer(row))))


def cells_of(study: Study, row: dict[str, Any]) -> list[str]:
    """A row of the table as text."""
    versus = row.get(f"vs_{study.baseline}")
    return [
        row["name"],
        _spread(row["wer"]),
        _spread(shown_cer(row)),
        f"{versus['delta_cer']:+.2f}" if versus else "",
        _interval(versus) if versus else "",
        f"{versus['p_holm_cer']:.3f}" if versus and "p_holm_cer" in versus else "",
        f"{np.mean(row['loops']):.1f}",
        f"{row['seconds']:.0f}",
        f"{row['peak_mb']:.0f}",
    ]


def _interval(versus: dict[str, Any]) -> str:
    if versus["interval"] is None:
        return "too few clips to say"
    clips_alone = ", clips alone" if versus["seeds_compared"] == 1 else ""
    return f"{versus['interval'][0]:+.2f} to {versus['interval'][1]:+.2f}{clips_alone}"


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def page(study: Study, results: dict[str, Any]) -> str:
    """A self-contained page: CER of every arm and its difference from the baseline, with intervals."""
    parts = [
        f"<h1>{html.escape(study.output.name)}: {html.escape(results['split'])} split, {results['runs']} runs</h1>"
    ]
    parts.append(
        "<p class='note'>Bars: mean CER over the seeds; dots: each seed; dashed: the teacher. Beside them the difference from the baseline "
        f"({html.escape(study.baseline)}), in points, with its 95 % interval; below 0 is better.</p>"
    )
    teachers = {teacher["corpus"]: shown_cer(teacher) for teacher in of_all(results["teacher"])}
    for student, corpus in dict.fromkeys((row["student"], row["corpus"]) for row in results["arms"]):
        figure = _arms(study, rows_of(results, student, corpus), teachers.get(corpus))
        title = f"{corpus}, {student}"
        parts.append(f"<h2>{html.escape(title)}</h2>{as_svg(figure, f'CER of every arm on {title}')}")
        parts.append(
            html_table(columns_of(study), [tuple(cells_of(study, row)) for row in rows_of(results, student, corpus)])
        )
    if compared := comparisons_of(study, results):
        parts.append(f"<h2>Other comparisons, CER</h2>{html_table(COMPARED, compared)}")
    return html_page(study.output.name, "".join(parts))


def _arms(study: Study, rows: Sequence[dict[str, Any]], teacher: float | None) -> Figure:
    """Arms of one corpus, lowest mean CER on top."""
    names = [row["name"] for row in rows]
    with new_figure(width=8.6, height=1.3 + 0.3 * len(rows), columns=2, sharey=True) as (figure, (rates, differences)):
        rates.barh(names, [float(np.mean(shown_cer(row))) for row in rows], color=SERIES[0], alpha=0.45)
        seeds = [(value, row["name"]) for row in rows for value in shown_cer(row)]
        rates.plot([x for x, _ in seeds], [y for _, y in seeds], "o", color=INK, markersize=3)
        if teacher is not None:
            rates.axvline(teacher, color=FAINT, linestyle="--")
        rates.set_xlabel(f"CER, %{', capped' if study.cap_errors else ''}")
        rates.invert_yaxis()
        for row in rows:
            if versus := row.get(f"vs_{study.baseline}"):
                low, high = versus["interval"] or (versus["delta_cer"], versus["delta_cer"])
                differences.plot([low, high], [row["name"]] * 2, color=SERIES[1])
                differences.plot([versus["delta_cer"]], [row["name"]], "o", color=SERIES[1], markersize=5)
        differences.axvline(0, color=FAINT, linestyle=":")
        differences.set_xlabel(f"CER minus {study.baseline}'s, points")
    return figure
