"""What a study came to: one table, JSON with the raw transcripts beside it, and a plot."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import typer

from workbench.core.errors import UserError
from workbench.core.files import atomic_path, write_json, write_text
from workbench.core.host import describe_host
from workbench.core.tables import print_rows
from workbench.evaluation.comparison import PairedHypotheses, difference_over_seeds, holm
from workbench.evaluation.scoring import headline, normalizers_of, score
from workbench.study.arm import teacher_scores
from workbench.study.current import read_results
from workbench.study.plan import Study, Trial

POOLED = "mean of the corpora"


def collect(study: Study, chosen: list[Trial], command: str) -> dict[str, Any]:
    """Compare every arm with the baseline on the same clips and seeds, as far as their runs are done.

    Rates are counted anew from the transcripts, so that all arms are scored alike whenever they ran. Intervals and p-values are those of
    `difference_over_seeds`; p-values are adjusted by Holm over the arms that are compared with one baseline on one corpus.

    Raises:
        UserError: no run is done yet.
    """
    found = {trial: _scored_anew(result, study.split) for trial, result in read_results(study, chosen).items()}
    if not found:
        raise UserError(f"{study.output}: no run of the study is done yet")
    arms = []
    for student, corpus in dict.fromkeys((c.student, c.corpus) for c in found):
        base = _of(found, student, corpus, study.baseline)
        for arm in study.arms:
            own = _of(found, student, corpus, arm)
            if own:
                arms.append(_summary(study, arm, student, corpus, own, base))
    teachers = [{**said, **_rates(said)} for c in study.corpora if (said := teacher_scores(study, c)) is not None]
    for student in dict.fromkeys(c.student for c in found):
        for arm in study.arms:
            arms += _pooled(study, arm, student, found, sorted({c.seed for c in chosen}))
    _adjust(study, arms)
    hosts = {json.dumps(result["host"], sort_keys=True) for result in found.values()}
    return {
        "schema": 1,
        "split": study.split,
        "baseline": study.baseline,
        "teacher": [
            {key: t[key] for key in ("name", "corpus", "wer", "cer", "loops", "headline", "normalizers")}
            for t in teachers
        ],
        "arms": arms,
        "runs": f"{len(found)} of {len(chosen)}",
        "command": command,
        "host": json.loads(sorted(hosts)[0]) if len(hosts) == 1 else [json.loads(h) for h in sorted(hosts)],
        "collected_on": describe_host(),
    }


def _scored_anew(result: dict[str, Any], split: str) -> dict[str, Any]:
    return {**result, split: {**result[split], **_rates(result[split])}}


def _rates(found: dict[str, Any]) -> dict[str, object]:
    """WER, CER and loops of kept transcripts under today's normalizers."""
    rates = score(found["references"], found["hypotheses"], languages_of(found))
    return {"wer": round(rates.wer, 3), "cer": round(rates.cer, 3), "loops": float(rates.loops),
            "headline": headline(languages_of(found)), "normalizers": normalizers_of(languages_of(found))}  # fmt: skip


def languages_of(found: dict[str, Any]) -> list[str]:
    """The language of each clip among kept transcripts; results of earlier versions hold one for all."""
    languages: list[str] = (
        found["languages"] if "languages" in found else [found["language"]] * len(found["references"])
    )
    return languages


def _adjust(study: Study, arms: list[dict[str, Any]]) -> None:
    """Add to each arm's comparison with the baseline the p-values adjusted for the number of arms compared there."""
    for student, corpus in dict.fromkeys((row["student"], row["corpus"]) for row in arms):
        group = [row[f"vs_{study.baseline}"] for row in arms
                 if (row["student"], row["corpus"]) == (student, corpus) and f"vs_{study.baseline}" in row]  # fmt: skip
        for unit in ("cer", "wer"):
            compared = [versus for versus in group if versus[f"p_{unit}"] is not None]
            for versus, p in zip(compared, holm([v[f"p_{unit}"] for v in compared]), strict=True):
                versus[f"p_holm_{unit}"] = p


def _of(found: dict[Trial, Any], student: str, corpus: str, arm: str) -> dict[int, Any]:
    return {c.seed: r for c, r in found.items() if (c.student, c.corpus, c.arm) == (student, corpus, arm)}


def _summary(
    study: Study, arm: str, student: str, corpus: str, own: dict[int, Any], base: dict[int, Any]
) -> dict[str, Any]:
    split = study.split
    seeds = sorted(own)
    row: dict[str, object] = {
        "name": arm,
        "student": student,
        "corpus": corpus,
        "seeds": seeds,
        "wer": [own[s][split]["wer"] for s in seeds],
        "cer": [own[s][split]["cer"] for s in seeds],
        "loops": [own[s][split]["loops"] for s in seeds],
        "validation_wer": [own[s]["validation"]["wer"] for s in seeds],
        "validation_cer": [own[s]["validation"]["cer"] for s in seeds],
        "seconds": round(float(np.mean([own[s]["seconds"]["training"] for s in seeds])), 1),
        "look_ahead_seconds": round(float(np.mean([own[s]["seconds"]["look_ahead"] for s in seeds])), 1),
        "peak_mb": round(float(np.max([own[s]["peak_mb"] for s in seeds])), 1),
    }
    common = [s for s in seeds if s in base]
    if teacher_scores(study, corpus) is not None:
        row["vs_teacher"] = _versus([_against_teacher(study, corpus, own)])
    if arm != study.baseline and common:
        row[f"vs_{study.baseline}"] = {**_versus([_compared(own, base, common, split)]), "seeds": common}
    return row


def _pooled(study: Study, arm: str, student: str, found: dict[Trial, Any], seeds: list[int]) -> list[dict[str, Any]]:
    """An arm over all corpora of which these seeds are done, for it and for the baseline; none if that is fewer than two."""
    sides = []
    for corpus in study.corpora:
        own, base = (_of(found, student, corpus, name) for name in (arm, study.baseline))
        if set(own) == set(base) == set(seeds):
            sides.append((corpus, own, base))
    if len(sides) < 2:
        return []
    split = study.split

    def mean(key: str) -> list[float]:
        return [round(float(np.mean([own[s][split][key] for _, own, _ in sides])), 3) for s in seeds]

    row = {
        "name": arm,
        "student": student,
        "corpus": POOLED,
        "corpora": [corpus for corpus, _, _ in sides],
        "seeds": seeds,
        "wer": mean("wer"),
        "cer": mean("cer"),
        "loops": mean("loops"),
        "seconds": round(float(np.mean([own[s]["seconds"]["training"] for _, own, _ in sides for s in seeds])), 1),
        "peak_mb": round(float(np.max([own[s]["peak_mb"] for _, own, _ in sides for s in seeds])), 1),
    }
    if all(teacher_scores(study, corpus) is not None for corpus, _, _ in sides):
        row["vs_teacher"] = _versus([_against_teacher(study, corpus, own) for corpus, own, _ in sides])
    if arm != study.baseline:
        row[f"vs_{study.baseline}"] = _versus([_compared(own, base, seeds, split) for _, own, base in sides])
    return [row]


def _compared(own: dict[int, Any], base: dict[int, Any], seeds: list[int], split: str) -> PairedHypotheses:
    first = base[seeds[0]][split]
    ours, theirs = ([side[s][split]["hypotheses"] for s in seeds] for side in (own, base))
    return PairedHypotheses(first["references"], ours, theirs, languages_of(first))


def _against_teacher(study: Study, corpus: str, own: dict[int, Any]) -> PairedHypotheses:
    teacher = teacher_scores(study, corpus)
    assert teacher is not None  # noqa: S101  asked for only where it is
    ours = [own[s][study.split]["hypotheses"] for s in sorted(own)]
    return PairedHypotheses(teacher["references"], ours, [teacher["hypotheses"]] * len(ours), languages_of(teacher))


def _versus(corpora: list[PairedHypotheses]) -> dict[str, object]:
    cer, wer = (difference_over_seeds(corpora, unit) for unit in ("cer", "wer"))
    return {
        "delta_cer": cer["points"],
        "interval": cer["ci"],
        "relative_cer": round(100 * cer["relative"], 2),
        "delta_wer": wer["points"],
        "interval_wer": wer["ci"],
        "p_cer": cer["p"],
        "p_wer": wer["p"],
        "seeds_compared": cer["seeds"],
    }


def write(study: Study, chosen: list[Trial], results: dict[str, Any]) -> list[Path]:
    """Write study.json, hypotheses.jsonl.gz, study.md and study.html into the study's folder; returns their paths."""
    paths = [study.output / name for name in ("study.json", "hypotheses.jsonl.gz", "study.html", "study.md")]
    write_json(paths[0], results)
    with atomic_path(paths[1]) as temporary, gzip.GzipFile(temporary, "wb", mtime=0) as file:
        for trial, result in read_results(study, chosen).items():
            split = result[study.split]
            row = {**trial.__dict__, **{key: split[key] for key in ("ids", "references", "hypotheses")}}
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        for corpus in dict.fromkeys(trial.corpus for trial in chosen):
            if (said := teacher_scores(study, corpus)) is not None:
                row = {key: said[key] for key in ("name", "corpus", "ids", "references", "hypotheses")}
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    write_text(paths[2], page(study, results))
    write_text(paths[3], markdown(study, results))
    return paths


def print_table(study: Study, results: dict[str, Any]) -> None:
    """The table in the terminal, lowest mean CER first."""
    for teacher in results["teacher"]:
        typer.echo(
            f"teacher {teacher['name']} on {teacher['corpus']}: WER {teacher['wer']:.2f} %, CER {teacher['cer']:.2f} %"
        )
    for student, corpus in dict.fromkeys((row["student"], row["corpus"]) for row in results["arms"]):
        shown = [cells_of(study, row) for row in rows_of(results, student, corpus)]
        title = f"{corpus}, {student}: {results['split']}, mean of the seeds (lowest to highest)"
        print_rows(columns_of(study), shown, title)


def markdown(study: Study, results: dict[str, Any]) -> str:
    """The same as Markdown, a table a corpus."""
    out = [f"Split: {results['split']}. Runs: {results['runs']}. Command: `{results['command']}`.\n"]
    teachers = {teacher["corpus"]: teacher for teacher in results["teacher"]}
    for student, corpus in dict.fromkeys((row["student"], row["corpus"]) for row in results["arms"]):
        said = teachers.get(corpus)
        note = f"; teacher: WER {said['wer']:.2f} %, CER {said['cer']:.2f} %" if said else ""
        out += [f"\n**{corpus}, {student}**{note}\n", "|".join(["", *columns_of(study), ""]), "|---" * 9 + "|"]
        out += ["|".join(["", *cells_of(study, row), ""]) for row in rows_of(results, student, corpus)]
    return "\n".join(out) + "\n"


def columns_of(study: Study) -> tuple[str, ...]:
    """Heads of the table."""
    return (
        "arm",
        "WER %",
        "CER %",
        f"CER vs {study.baseline}",
        "95 % interval",
        "p (Holm)",
        "loops",
        "train s",
        "peak MB",
    )


def rows_of(results: dict[str, Any], student: str, corpus: str) -> list[dict[str, Any]]:
    """Arms of one corpus, lowest mean CER first."""
    rows = [row for row in results["arms"] if (row["student"], row["corpus"]) == (student, corpus)]
    return sorted(rows, key=lambda row: float(np.mean(row["cer"])))


def cells_of(study: Study, row: dict[str, Any]) -> list[str]:
    """A row of the table as text."""
    versus = row.get(f"vs_{study.baseline}")
    return [
        row["name"],
        _spread(row["wer"]),
        _spread(row["cer"]),
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
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    groups = list(dict.fromkeys((row["student"], row["corpus"]) for row in results["arms"]))
    titles = [
        f"{corpus}, {student}: {what}"
        for student, corpus in groups
        for what in ("CER %, dots are seeds", f"CER minus {study.baseline}'s, points, 95 % interval")
    ]
    gap = 80  # pixels between two rows of plots, for ticks and titles
    height = 140 + sum(gap + 28 * len(study.arms) for _ in groups)
    figure = make_subplots(
        len(groups), 2, subplot_titles=titles, vertical_spacing=gap / (height - 140), horizontal_spacing=0.16
    )
    teachers = {teacher["corpus"]: teacher["cer"] for teacher in results["teacher"]}
    for number, group in enumerate(groups, 1):
        rows = [row for row in results["arms"] if (row["student"], row["corpus"]) == group]
        rows.sort(key=lambda row: -float(np.mean(row["cer"])))
        names = [row["name"] for row in rows]
        means = [float(np.mean(row["cer"])) for row in rows]
        figure.add_trace(
            go.Bar(x=means, y=names, orientation="h", marker_color="#7a9cc6", name="mean CER %"), number, 1
        )
        seeds = [(value, row["name"]) for row in rows for value in row["cer"]]
        points = {"mode": "markers", "marker": {"color": "#333", "size": 5}, "name": "each seed"}
        figure.add_trace(go.Scatter(x=[x for x, _ in seeds], y=[y for _, y in seeds], **points), number, 1)
        compared = [row for row in rows if f"vs_{study.baseline}" in row]
        versus = [row[f"vs_{study.baseline}"] for row in compared]
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [v["interval"][1] - v["delta_cer"] if v["interval"] else 0 for v in versus],
            "arrayminus": [v["delta_cer"] - v["interval"][0] if v["interval"] else 0 for v in versus],
        }
        marks = go.Scatter(
            x=[v["delta_cer"] for v in versus], y=[row["name"] for row in compared], error_x=bars, mode="markers",
            marker={"color": "#b5523b", "size": 8}, name="difference, 95 %",
        )  # fmt: skip
        figure.add_trace(marks, number, 2)
        figure.add_vline(x=0, line_dash="dot", row=number, col=2)
        if group[1] in teachers:
            figure.add_vline(x=teachers[group[1]], line_dash="dash", annotation_text="teacher", row=number, col=1)
    title = f"{study.output.name}: {results['split']} split, {results['runs']} runs"
    figure.update_layout(height=height, showlegend=False, template="plotly_white", title=title)
    html: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return html
