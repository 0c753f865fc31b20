"""The page of one or several runs, part by part; what is missing is left out with a line that says why."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.edge.bundle.content import Host
from export.measurement.conclusion import Conclusion, conclude, conclude_all, incomparable
from export.measurement.content import Report, Section
from export.measurement.leaderboard import leaderboard_rows, leaderboard_title
from export.measurement.page import plots
from export.measurement.page.errors import MOST_STUDENTS, AudioBudget, errors_html
from export.measurement.page.source import Source, scores_of
from export.measurement.tables import columns, described, normalizers, of_language, robustness_rows, rows, sections
from export.measurement.verdict import MARGIN
from workbench.core.errors import UserError
from workbench.core.files import write_text
from workbench.core.html_page import html_page, html_table
from workbench.core.plots import as_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Report: "  # begins every page's title
AUDIO_CLIPS = 20  # in a page, by default
BASIS = (
    f"“No worse” means that the whole 95 % interval lies below +{MARGIN:g} points. Intervals are bootstrap intervals over clips, paired where two systems are "
    "compared; they do not cover what another training run would give. Where several systems are compared, the chosen one's figures are a little too good: "
    "choose on validation, and measure on test once."
)


def write_page(sources: Sequence[Source], path: Path, audio_clips: int = AUDIO_CLIPS) -> None:
    """Write the report.

    Args:
        sources: the runs.
        path: HTML file to write.
        audio_clips: at most this many clips of speech are put into the page; 0 for none.
    """
    measured = [(source, source.report) for source in sources if source.report is not None]
    conclusions = [conclude(source.name, report) for source, report in measured]
    names = ", ".join(source.name for source in sources)
    budget = AudioBudget(audio_clips, sum(len(sections(report)) for _, report in measured))
    parts = [f"<h1>{html.escape('Students against their teacher' if measured else 'Runs')}: {html.escape(names)}</h1>"]
    parts += _verdicts(sources, [r for _, r in measured], conclusions)
    if measured:
        parts += ["<h2>Results</h2>", *_results(measured, conclusions)]
        if any("leaderboard" in report for _, report in measured):
            parts += ["<h2>By the Open ASR Leaderboard’s protocol</h2>", *_per_run(measured, _leaderboard)]
        parts += ["<h2>The trade-off</h2>", *_trade_offs(measured)]
        parts += ["<h2>Where the time goes</h2>", *_per_run(measured, _times)]
        parts += [_errors(source, report, c, budget) for (source, report), c in zip(measured, conclusions, strict=True)]
        parts += ["<h2>Sounds without speech</h2>", *_per_run(measured, _unspoken)]
    parts += ["<h2>Training</h2>", *(part for source in sources for part in _training(source))]
    parts += ["<h2>How it was made</h2>", *(part for source in sources for part in _origin(source))]
    write_text(path, html_page(f"{TITLE}{names}", "\n".join(parts)))


def is_page(path: Path) -> bool:
    """Whether a file is a page of `write_page`: it begins as each of them does."""
    begins = html_page(TITLE, "").partition(TITLE)[0] + TITLE
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(begins.encode())) == begins.encode()


def _verdicts(sources: Sequence[Source], reports: Sequence[Report], conclusions: Sequence[Conclusion]) -> list[str]:
    """One verdict a run, and before them the one of all together."""
    out = []
    if len(conclusions) > 1:
        out.append(_verdict(conclude_all(conclusions, reports)))
    found = iter(conclusions)
    for source in sources:
        heading = f"<h3>{html.escape(source.name)}</h3>" if len(sources) > 1 else ""
        if source.report is not None:
            out.append(heading + _verdict(next(found)))
        else:
            out.append(
                f'{heading}<div class="verdict"><p class="first">Not measured, so nothing can be said of it yet.</p>'
                f"<p>Export its student and run <code>workbench measure</code>.{html.escape(_validation(source))}</p></div>"
            )
    return [*out, f'<p class="note">{html.escape(BASIS)}</p>'] if conclusions else out


def _verdict(conclusion: Conclusion) -> str:
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in conclusion.because)
    return (
        f'<div class="verdict {conclusion.kind}"><p class="first">{html.escape(conclusion.first)}</p>'
        + (f"<ul>{lines}</ul>" if lines else "")
        + "</div>"
    )


def _validation(source: Source) -> str:
    """The validation scores of a run that was not measured."""
    found = [scores["validation"] for folder in source.folders.values() if (scores := scores_of(folder))]
    return "".join(
        f" After training: validation WER {v['wer']:.2f} %, CER {v['cer']:.2f} %."
        if v
        else " It was not validated in training."
        for v in found
    )


def _results(measured: Sequence[tuple[Source, Report]], conclusions: Sequence[Conclusion]) -> list[str]:
    """The tables: runs whose first corpus has the same columns in one, then each further corpus."""
    many = len(measured) > 1
    groups: dict[tuple[str, ...], list[tuple[tuple[str, ...], bool]]] = {}
    for (source, report), conclusion in zip(measured, conclusions, strict=True):
        shipped = conclusion.student.name if conclusion.student else ""
        for system, row in zip(report["systems"], rows(report), strict=True):
            cells = (f"{source.name}: {row[0]}", *row[1:]) if many else row
            groups.setdefault(columns(report), []).append((cells, system["name"] == shipped))
    out = []
    if not many:
        report = measured[0][1]
        out.append(_section_notes(*sections(report)[0]))
    for head, table in groups.items():
        out.append(
            html_table(head, [row for row, _ in table], frozenset(i for i, (_, bold) in enumerate(table) if bold))
        )
    out.append(
        '<p class="note">Bold: the student to ship. S/D/I: words substituted, deleted, inserted. RTFx: seconds of speech a second.</p>'
    )
    for source, report in measured:
        prefix = f"{source.name}: " if many else ""
        for number, (title, section) in enumerate(sections(report)):
            if many or number:
                out.append(_section_notes(prefix + title, section))
            if number:
                out.append(html_table(columns(section), rows(section)))
            if languages := section["systems"][0]["by_language"]:
                head = ("language", "clips", "rate", *(s["name"] for s in section["systems"]))
                out.append(html_table(head, [of_language(code, section["systems"]) for code in languages]))
        if not report["other_corpora"]:
            out.append(
                f'<p class="missing">{html.escape(prefix)}speech of other corpora: not measured; name more with <code>--corpus</code>.</p>'
            )
    return out


def _section_notes(title: str, section: Section) -> str:
    return f'<h3>{html.escape(title)}</h3><p class="note">{html.escape(described(section))}; {html.escape(normalizers(section))}.</p>'


def _trade_offs(measured: Sequence[tuple[Source, Report]]) -> list[str]:
    """Plots of all runs together where they can be compared, else of each."""
    note = (
        '<p class="note">Towards the lower left is better. Bars are 95 % intervals; size and memory have none. The dotted line is the Pareto front: '
        "no other system is better in both at once by these points; where bars overlap, that may be chance.</p>"
    )
    reports = [report for _, report in measured]
    if len(measured) > 1 and not incomparable(reports):
        points = [
            point
            for number, (source, report) in enumerate(measured)
            for point in plots.points_of(report, lambda name, source=source: f"{source.name}: {name}")  # type: ignore[misc]
            if number == 0 or not point.teacher  # every run measured the same one
        ]
        return [note, _figures(plots.trade_offs(points, reports[0]["corpus"]["headline"]))]
    out = [note]
    if len(measured) > 1:
        out.append(f'<p class="missing">Runs are drawn apart: {html.escape(incomparable(reports))}.</p>')
    for source, report in measured:
        for number, (_, section) in enumerate(sections(report)):
            name = section["corpus"]["name"]
            if number or len(measured) > 1 or report["other_corpora"]:
                out.append(f"<h3>{html.escape(f'{source.name}: {name}' if len(measured) > 1 else name)}</h3>")
            out.append(_figures(plots.trade_offs(plots.points_of(section), section["corpus"]["headline"])))
    return out


def _figures(figures: Sequence[tuple[Figure, str]]) -> str:
    return f'<div class="plots">{"".join(f"<div>{as_svg(figure, what)}</div>" for figure, what in figures)}</div>'


def _per_run(measured: Sequence[tuple[Source, Report]], part: Callable[[Report], str]) -> list[str]:
    out = []
    for source, report in measured:
        heading = f"<h3>{html.escape(source.name)}</h3>" if len(measured) > 1 else ""
        out.append(heading + part(report))
    return out


def _times(report: Report) -> str:
    figures = [
        (plots.stage_shares(report, str), "share of each stage in the time"),
        (plots.latency_by_length(report, str), "latency by length of the clip"),
    ]
    note = (
        f'<p class="note">Medians over the clips of {html.escape(report["corpus"]["name"])}. decode: the file; detector: whether somebody speaks; '
        "first token: the first step of the decoder; rest: all others; detokenize: tokens to text.</p>"
    )
    return note + _figures(figures)


def _errors(source: Source, report: Report, conclusion: Conclusion, budget: AudioBudget) -> str:
    """Errors of the student to ship, or else of the first one, on each corpus."""
    students = [system["name"] for system in report["systems"][1:]]
    if not students:
        return ""
    chosen = conclusion.student.name if conclusion.student else students[0]
    shown = [name for name in students if name != chosen][: MOST_STUDENTS - 1]
    named = {report["systems"][0]["name"]: "teacher", chosen: chosen, **{name: name for name in shown}}
    out = [f"<h2>Errors of {html.escape(chosen)}, worst first</h2>"]
    out += [
        f"<h3>{html.escape(section['corpus']['name'])}</h3>{errors_html(source, section, chosen, named, budget)}"
        for _, section in sections(report)
    ]
    return "\n".join(out)


def _leaderboard(report: Report) -> str:
    if "leaderboard" not in report:
        return '<p class="missing">Left out: it was measured without <code>--preset</code>.</p>'
    found = report["leaderboard"]
    head, *body = leaderboard_rows(found)
    title = html.escape(f"{leaderboard_title(found)}; {found['normalizer']}; {found['source']}")
    differs = "".join(f"<li>{html.escape(line)}</li>" for line in found["differs"])
    return f'<p class="note">{title}</p>{html_table(head, body)}<ul>{differs}</ul>'


def _unspoken(report: Report) -> str:
    if "robustness" not in report:
        return '<p class="missing">Left out: it was measured with <code>--no-robustness</code>.</p>'
    head, *body = robustness_rows(report)
    return (
        '<p class="note">Clips on which a system wrote text, and how many words: with the speech detector (the default) and with the detector off.</p>'
        + html_table(head, body)
    )


def _training(source: Source) -> list[str]:
    """Learning curves, and how the weights moved."""
    out = []
    try:
        curves = source.curves()
    except UserError as error:
        curves = {}
        out.append(_missing(f"{source.name}: learning curves: {error}"))
    else:
        if not curves:
            out.append(
                _missing(f"{source.name}: learning curves: there is no metrics.jsonl of `workbench distill` beside it")
            )
    for name, found in curves.items():
        out.append(f"<h3>{html.escape(name)}: learning curves</h3>{_figures(plots.learning_curves(found))}")
    for name, folder in source.folders.items():
        out.append(_weights(name, folder))
    return out


def _weights(name: str, folder: Path) -> str:
    """How a run's weights moved, by how hard an utterance is for the teacher."""
    from workbench.study.label_errors import plot, read_run

    if not (folder / "weights.parquet").is_file():
        return _missing(f"{name}: weights over time: there is no weights.parquet of `workbench distill` beside it")
    try:
        run = read_run(folder)
    except UserError as error:
        return _missing(f"{name}: weights over time: {error}")
    note = (
        f"How {run.system} weighted its utterances in stage {run.stage}, in fifths by the teacher's own loss: the harder, the redder. "
        "workbench weights lists those that it trusted least, with audio."
    )
    figures = _figures([(figure, "weights over time by difficulty") for figure in plot(run)])
    return f'<h3>{html.escape(name)}: how the weights moved</h3><p class="note">{html.escape(note)}</p>{figures}'


def _missing(line: str) -> str:
    return f'<p class="missing">{html.escape(line)}.</p>'


def _origin(source: Source) -> list[str]:
    """Host, versions and commands, of the measurement and of the training."""
    report = source.report
    out = [f"<h3>{html.escape(source.name)}</h3>"]
    if report is None:
        out.append(_missing("Measurement: there is none"))
    else:
        out.append(
            f"<p>Measured on {html.escape(_host(report['host']))}. Every clip went to each system in turn, {report['threads']} threads, "
            f"{report['repeats']} pass(es), each system in its own process.</p>"
        )
        if "command" in report:
            out.append(f"<p><code>{html.escape(report['command'])}</code></p>")
        else:
            out.append(_missing("The command that measured it: an earlier version did not record it"))
    for name, folder in source.folders.items():
        scores = scores_of(folder)
        if scores is None:
            out.append(_missing(f"Training of {name}: there is no scores.json of `workbench distill` beside it"))
            continue
        out.append(
            f"<p>{html.escape(name)} was trained from {html.escape(scores['teacher']['name'])} on {_clips_of(scores['corpus'])} "
            f"of {html.escape(scores['corpus']['name'])} in {scores['steps']} steps, "
            f"{scores['seconds']['training']:.0f} s after {scores['seconds']['teacher_pass']:.0f} s of the teacher's pass, on {html.escape(_host(scores['host']))}.</p>"
            "<p><code>workbench distill recipe.yaml</code>, with the recipe in the run's folder</p>"
        )
    return out


def _clips_of(corpus: Mapping[str, Any]) -> str:
    """How many clips a run was trained on."""
    if corpus["clips"] is None or corpus["seconds"] is None:
        return "clips that were not counted (a stream)"
    return f"{corpus['clips']} clips ({corpus['seconds']:.0f} s)"


def _host(host: Host) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in {"python": host["python"], **host["versions"]}.items())
    return f"{host['cpu']}, {host['cpus']} CPUs ({', '.join(host['cpu_flags'])}), {host['memory_gb']:g} GB; {host['system']}; {versions}"
