"""A measurement as a self-contained page (no network needed to open it) and as a table in the terminal."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from export import curves
from export.latency import STAGES
from export.robustness import made_up
from workbench.files import write_text
from workbench.scoring import normalize

COLUMNS = (
    "system",
    "WER %",
    "95 % interval",
    "vs teacher",
    "CER %",
    "S/D/I",
    "loops",
    "p50 ms",
    "p95 ms",
    "speed-up",
    "RTFx",
    "MB",
    "peak RSS MB",
    "load ms",
)


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Cells of the result table, a row a system, in the order of COLUMNS."""
    out: list[tuple[str, ...]] = []
    for system in report["systems"]:
        difference = system.get("wer_difference")
        out.append(
            (
                system["name"],
                f"{system['wer']:.2f}",
                f"{system['wer_ci'][0]:.2f} to {system['wer_ci'][1]:.2f}",
                f"{difference['points']:+.2f} ({difference['ci'][0]:+.2f} to {difference['ci'][1]:+.2f})"
                if difference
                else "",
                f"{system['cer']:.2f}",
                f"{system['substitutions']}/{system['deletions']}/{system['insertions']}",
                str(system["loops"]),
                f"{system['latency_ms']['p50']:.0f}",
                f"{system['latency_ms']['p95']:.0f}",
                f"{system['speedup']:.1f} x" if "speedup" in system else "1",
                f"{system['rtfx']:.1f}",
                f"{system['size_mb']:.0f}",
                f"{system['peak_rss_mb']:.0f}",
                f"{system['load_ms']:.0f}",
            )
        )
    return out


def print_table(report: dict[str, Any]) -> None:
    """Print the result table."""
    from rich.console import Console
    from rich.table import Table

    corpus = report["corpus"]
    table = Table(
        title=f"{corpus['name']}, {corpus['split']}: {corpus['clips']} clips, {corpus['seconds']:.0f} s, {report['threads']} threads"
    )
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "system" else "right", no_wrap=column == "system")
    for row in rows(report):
        table.add_row(*row)
    # a table squeezed into a log's 80 columns cannot be read
    console = Console(width=max(Console().width, 170))
    console.print(table)
    if "robustness" in report:
        unspoken = Table(title="where nobody speaks: clips on which words were written (their number), loops")
        header, *body = robustness_rows(report)
        for column in header:
            unspoken.add_column(column, justify="left" if column == "system" else "right")
        for row in body:
            unspoken.add_row(*row)
        console.print(unspoken)


def robustness_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Cells of the table of sounds without speech, its header first."""
    found = report["robustness"]
    kinds = found["sounds"]
    out = [("system", *(f"{kind}, of {of['clips']}" for kind, of in kinds.items()), "made up %", "one word, WER %")]
    for name, row in found["systems"].items():
        cells = [
            f"{row[kind]['wrote']} ({row[kind]['words']})"
            + (f", {row[kind]['loops']} loops" if row[kind]["loops"] else "")
            for kind in kinds
        ]
        short = row["one word"]
        one = f"{short['wer']:.1f} of {short['clips']} clips" if short["clips"] else ""
        out.append((name, *cells, f"{made_up(row, kinds):.0f}", one))
    passed = [str(of["taken_for_speech"]) if "taken_for_speech" in of else "" for of in kinds.values()]
    return [*out, ("let through by the speech detector", *passed, "", "")]


def write_html(report: dict[str, Any], path: Path) -> None:
    """Write the page: table, plots, and every clip on which a student and the teacher differ."""
    corpus, host = report["corpus"], report["host"]
    header = "".join(f"<th>{html.escape(c)}</th>" for c in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows(report))
    flags = ", ".join(host["cpu_flags"])
    versions = ", ".join(f"{k} {v}" for k, v in host["versions"].items())
    write_text(
        path,
        f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(corpus["name"])} {corpus["split"]}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body{{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem;color:#1b1f24}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}td,th{{padding:.3rem .6rem;border-bottom:1px solid #d8dee4;text-align:right}}
td:first-child,th:first-child{{text-align:left}}.plots{{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1rem}}@media(max-width:900px){{.plots{{display:block}}}}
.scroll{{overflow-x:auto}}small{{color:#57606a}}#clips td{{text-align:left;vertical-align:top}}</style></head><body>
<h1>Students against their teacher</h1>
<p>{html.escape(corpus["name"])}, {corpus["split"]} split: {corpus["clips"]} clips, {corpus["seconds"]:.0f} s of speech. Every clip went to each
system in turn, {report["threads"]} threads, {report["repeats"]} pass(es). WER and CER under Whisper's normalizer; intervals are paired
bootstrap over clips.</p>
<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>
<p><small>{html.escape(host["cpu"])} ({host["cpus"]} CPUs; {flags}). {html.escape(versions)}.</small></p>
<div class="plots">{_plots(report)}</div>
{_unspoken(report)}
<h2>Clips where a student is wrong or differs from the teacher</h2>
<div class="scroll"><table id="clips">{_differing(report)}</table></div>
</body></html>
""",
    )


def _unspoken(report: dict[str, Any]) -> str:
    if "robustness" not in report:
        return ""
    cells = [[html.escape(cell) for cell in row] for row in robustness_rows(report)]
    table = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
    return (
        "<h2>Where nobody speaks</h2><p>Clips on which a system wrote words, and how many words; a recording that is cut by the speech "
        f'detector first loses what that does not let through.</p><div class="scroll"><table>{table}</table></div>'
    )


def _plots(report: dict[str, Any]) -> str:
    import plotly.graph_objects as go
    import plotly.io as pio

    systems = report["systems"]
    names = [s["name"] for s in systems]
    tradeoff = go.Figure(
        layout={"title": "Latency and accuracy", "xaxis_title": "median latency, ms", "yaxis_title": "WER, %"}
    )
    stages = go.Figure(
        layout={"title": "Where the time goes (median ms a clip)", "barmode": "stack", "yaxis_title": "ms"}
    )
    spread = go.Figure(
        layout={
            "title": "Latency against the clip's length",
            "xaxis_title": "seconds of speech",
            "yaxis_title": "ms",
            "yaxis_type": "log",
        }
    )
    for system in systems:
        low, high = system["wer"] - system["wer_ci"][0], system["wer_ci"][1] - system["wer"]
        bars = {"type": "data", "symmetric": False, "array": [high], "arrayminus": [low]}
        tradeoff.add_scatter(
            x=[system["latency_ms"]["p50"]],
            y=[system["wer"]],
            error_y=bars,
            name=system["name"],
            mode="markers",
            marker_size=12,
        )
        clips = report["clips"]
        totals = [sum(c["stages_ms"][system["name"]].values()) for c in clips]
        spread.add_scatter(
            x=[c["seconds"] for c in clips],
            y=totals,
            name=system["name"],
            mode="markers",
            text=[c["id"] for c in clips],
        )
    for stage in STAGES:
        stages.add_bar(x=names, y=[s["stages_ms"][stage] for s in systems], name=stage.replace("_", " "))
    figures = (tradeoff, stages, spread, *curves.figures(report.get("training", {})))
    for figure in figures:
        figure.update_layout(
            template="plotly_white",
            height=420,
            margin={"l": 60, "r": 20, "t": 50, "b": 90},
            legend={"orientation": "h", "y": -0.22},
        )
    options = {"full_html": False, "default_width": "100%", "config": {"displaylogo": False, "responsive": True}}
    parts = [pio.to_html(f, include_plotlyjs=i == 0, **options) for i, f in enumerate(figures)]
    return "".join(f"<div>{part}</div>" for part in parts)


def _differing(report: dict[str, Any]) -> str:
    names = [s["name"] for s in report["systems"]]
    out = ["<tr><th>clip</th><th>reference</th>" + "".join(f"<th>{html.escape(n)}</th>" for n in names) + "</tr>"]
    for clip in report["clips"]:
        texts = {normalize(text) for text in clip["hypotheses"].values()} | {normalize(clip["reference"])}
        if len(texts) > 1:
            cells = [clip["id"], clip["reference"], *(clip["hypotheses"][n] for n in names)]
            out.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return "".join(out)
