"""A measurement as a self-contained HTML page (works offline) and as a terminal table."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from export.edge.bundle.content import Difference
from export.measurement import curves
from export.measurement.content import LanguageScores, Report, Section, SystemRow
from export.measurement.latency import STAGES
from export.measurement.robustness import hallucination_rate
from workbench.core.files import write_text
from workbench.core.tables import print_rows
from workbench.evaluation.scoring import normalize

TIMES = ("p50 ms", "p95 ms", "speed-up", "RTFx", "MB", "peak RSS MB", "load ms")


def columns(section: Section) -> tuple[str, ...]:
    """Column headers of a corpus's result table; the headline rate comes first: CER for languages written without spaces, else WER."""
    first, second = ("CER %", "WER %") if section["corpus"]["headline"] == "cer" else ("WER %", "CER %")
    folded = ("folded WER %",) if _folds(section) else ()
    return ("system", first, "95 % interval", "vs teacher", second, *folded, "S/D/I", "loops", *TIMES)


def _folds(section: Section) -> bool:
    """Whether folding diacritics changes any system's WER; otherwise the column would be redundant."""
    return any(system["wer_folded"] != system["wer"] for system in section["systems"])


def rows(section: Section) -> list[tuple[str, ...]]:
    """Cells of a corpus's result table, one row per system, in the order of `columns`."""
    first = section["corpus"]["headline"]
    second = "wer" if first == "cer" else "cer"
    out: list[tuple[str, ...]] = []
    for system in section["systems"]:
        difference = _difference(system, first)
        out.append(
            (
                system["name"],
                f"{_rate(system, first):.2f}",
                interval(system["cer_ci"] if first == "cer" else system["wer_ci"]),
                f"{difference['points']:+.2f} ({interval(difference['ci'], '+')})" if difference else "",
                f"{_rate(system, second):.2f}",
                *((f"{system['wer_folded']:.2f}",) if _folds(section) else ()),
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


def _rate(found: SystemRow | LanguageScores, unit: str) -> float:
    return found["cer"] if unit == "cer" else found["wer"]


def _difference(system: SystemRow, unit: str) -> Difference | None:
    return system.get("cer_difference") if unit == "cer" else system.get("wer_difference")


def interval(bounds: Sequence[float] | None, sign: str = "") -> str:
    """A 95 % confidence interval as text; there is none for fewer than 20 clips."""
    return "too few clips" if bounds is None else f"{bounds[0]:{sign}.2f} to {bounds[1]:{sign}.2f}"


def sections(report: Report) -> list[tuple[str, Section]]:
    """Title and content of each corpus's section, the report's first corpus first."""
    titles = {
        True: "Held-out clips of a corpus that the students were trained on",
        False: "A corpus that the students were not trained on",
        None: "A corpus for which the bundles do not record whether the students were trained on it",
    }
    return [(titles[part["corpus"]["trained_on"]], part) for part in (report, *report["other_corpora"])]


def described(section: Section) -> str:
    """The clips of a section, in words."""
    corpus = section["corpus"]
    text = f"{corpus['name']}, {corpus['split']}: {corpus['clips']} clips, {corpus['seconds']:.0f} s"
    if corpus["not_scored"]:
        text += f" ({corpus['not_scored']} more are not scored: their references omit words)"
    return text


def normalizers(section: Section) -> str:
    """Names and versions of the normalizers applied before scoring a section."""
    return "normalizer: " + ", ".join(section["corpus"]["normalizers"].values())


def print_table(report: Report) -> None:
    """Print a result table for each corpus, and one for sounds without speech."""
    for title, section in sections(report):
        about = f"{title}: {described(section)}, {report['threads']} threads"
        print_rows(columns(section), rows(section), about, normalizers(section))
    if "robustness" in report:
        header, *body = robustness_rows(report)
        print_rows(header, body, "sounds without speech: clips on which text was written (words), loops")


def robustness_rows(report: Report) -> list[tuple[str, ...]]:
    """Cells of the table of sounds without speech, header first."""
    found = report["robustness"]
    kinds = found["sounds"]
    out = [
        ("system", *(f"{kind}, of {of['clips']}" for kind, of in kinds.items()), "hallucinated %", "one word, WER %")
    ]
    for name, row in found["systems"].items():
        cells = [
            f"{row[kind]['wrote']} ({row[kind]['words']})"
            + (f", {row[kind]['loops']} loops" if row[kind]["loops"] else "")
            for kind in kinds
        ]
        short = row["one word"]
        one = f"{short['wer']:.1f} of {short['clips']} clips" if short["clips"] else ""
        out.append((name, *cells, f"{hallucination_rate(row, kinds):.0f}", one))
    passed = [str(of["taken_for_speech"]) if "taken_for_speech" in of else "" for of in kinds.values()]
    return [*out, ("accepted by the speech detector", *passed, "", "")]


def write_html(report: Report, path: Path) -> None:
    """Write the page: tables, plots, and every clip whose transcripts differ from each other or from the reference."""
    corpus, host = report["corpus"], report["host"]
    flags = html.escape(", ".join(host["cpu_flags"]))
    versions = ", ".join(f"{k} {v}" for k, v in host["versions"].items())
    write_text(
        path,
        f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(corpus["name"])} {html.escape(corpus["split"])}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body{{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem;color:#1b1f24}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}td,th{{padding:.3rem .6rem;border-bottom:1px solid #d8dee4;text-align:right}}
td:first-child,th:first-child{{text-align:left}}.plots{{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1rem}}@media(max-width:900px){{.plots{{display:block}}}}
.scroll{{overflow-x:auto}}small{{color:#57606a}}.clips td{{text-align:left;vertical-align:top}}</style></head><body>
<h1>Students against their teacher</h1>
<p>Every clip went to each system in turn ({report["threads"]} threads, {report["repeats"]} pass(es)). Texts are normalized for each clip's language before scoring WER and CER; intervals are 95 % bootstrap intervals over clips, paired where two systems are compared.</p>
{"".join(_table(title, section) for title, section in sections(report))}
<p><small>{html.escape(host["cpu"])} ({host["cpus"]} CPUs; {flags}). {html.escape(versions)}.</small></p>
<div class="plots">{_plots(report)}</div>
{_unspoken(report)}
<h2>Clips where a student is wrong or differs from the teacher</h2>
{"".join(f'<div class="scroll"><table class="clips">{_differing(section)}</table></div>' for _, section in sections(report))}
</body></html>
""",
    )


def _table(title: str, section: Section) -> str:
    """A corpus's heading and result table, and its languages where it has more than one."""
    tables = [[columns(section), *rows(section)]]
    languages = section["systems"][0]["by_language"]
    if languages:
        head = ("language", "clips", "rate", *(s["name"] for s in section["systems"]))
        tables.append([head, *(_of_language(code, section["systems"]) for code in languages)])
    note = f"<p>{html.escape(described(section))}.<br><small>{html.escape(normalizers(section))}</small></p>"
    return f"<h2>{html.escape(title)}</h2>{note}" + "".join(
        f'<div class="scroll"><table>{"".join(_cells(row, "td" if i else "th") for i, row in enumerate(table))}</table></div>'
        for table in tables
    )


def _of_language(code: str, systems: Sequence[SystemRow]) -> tuple[str, ...]:
    """A language's row: its clips, the name of its headline rate, and each system's value."""
    found = [system["by_language"][code] for system in systems]
    rate = found[0]["headline"]
    return (code, str(found[0]["clips"]), f"{rate.upper()} %", *(f"{_rate(f, rate):.2f}" for f in found))


def _cells(row: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"


def _unspoken(report: Report) -> str:
    if "robustness" not in report:
        return ""
    cells = [[html.escape(cell) for cell in row] for row in robustness_rows(report)]
    table = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
    return (
        "<h2>Sounds without speech</h2><p>Clips on which a system wrote text, and how many words: with the speech detector (the default) "
        f'and with the detector off.</p><div class="scroll"><table>{table}</table></div>'
    )


def _plots(report: Report) -> str:
    import plotly.graph_objects as go
    import plotly.io as pio

    systems = report["systems"]
    names = [s["name"] for s in systems]
    tradeoff = go.Figure(
        layout={"title": "Latency and accuracy", "xaxis_title": "median latency, ms", "yaxis_title": "WER, %"}
    )
    stages = go.Figure(
        layout={"title": "Where the time goes (median ms per clip)", "barmode": "stack", "yaxis_title": "ms"}
    )
    spread = go.Figure(
        layout={
            "title": "Latency by clip length",
            "xaxis_title": "seconds of speech",
            "yaxis_title": "ms",
            "yaxis_type": "log",
        }
    )
    for system in systems:
        bounds = system["wer_ci"] or (system["wer"], system["wer"])
        low, high = system["wer"] - bounds[0], bounds[1] - system["wer"]
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


def _differing(section: Section) -> str:
    """The clips of a corpus whose normalized reference and transcripts are not all equal."""
    names = [s["name"] for s in section["systems"]]
    out = ["<tr><th>clip</th><th>reference</th>" + "".join(f"<th>{html.escape(n)}</th>" for n in names) + "</tr>"]
    for clip in section["clips"]:
        texts = {normalize(text, clip["language"]) for text in (clip["reference"], *clip["hypotheses"].values())}
        if len(texts) > 1:
            cells = [clip["id"], clip["reference"], *(clip["hypotheses"][n] for n in names)]
            out.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return "".join(out)
