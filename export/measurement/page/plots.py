"""The plots of a report: the trade-off, where the time goes, learning curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from export.measurement.content import LOSSES, Curves, Section, SystemRow
from export.measurement.latency import STAGES
from export.measurement.verdict import Interval, clip_latencies, median_interval
from workbench.core.plots import (
    FAINT,
    INK,
    legend_below,
    legend_label,
    new_figure,
    plain_log_ticks,
    series_colour,
    series_marker,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_LABEL = 32
LONGEST_IN_COLUMNS = 24  # longer labels have no room beside each other in a legend
MOST_CLIPS = 300  # in the plot of latency by length


@dataclass(frozen=True)
class Point:
    """A system in the plots of the trade-off."""

    name: str
    teacher: bool
    rate: float  # percent
    rate_interval: Interval | None
    row: SystemRow
    latency: float  # ms
    latency_interval: Interval | None


def points_of(section: Section, named: Callable[[str], str] = lambda name: name) -> list[Point]:
    """A point for each system of a section; `named` shortens a system's name."""
    unit = section["corpus"]["headline"]
    out = []
    for row in section["systems"]:
        rate, bounds = (row["cer"], row["cer_ci"]) if unit == "cer" else (row["wer"], row["wer_ci"])
        interval = (bounds[0], bounds[1]) if bounds else None
        spread = median_interval(clip_latencies(section, row["name"]))
        teacher = row["kind"] == "teacher"
        out.append(Point(named(row["name"]), teacher, rate, interval, row, row["latency_ms"]["p50"], spread))
    return out


def labels_of(names: Sequence[str]) -> list[str]:
    """Names as they stand in a plot, which has room for so much: cut in the middle, as they end in the precision, and numbered where equal then."""
    cut = [_cut(name, LONGEST_LABEL) for name in names]
    return [
        f"{_cut(name, LONGEST_LABEL - 5)} ({cut[: i + 1].count(label)})" if cut.count(label) > 1 else label
        for i, (name, label) in enumerate(zip(names, cut, strict=True))
    ]


def _legend(labels: Sequence[str]) -> tuple[int, float]:
    """Columns of a legend of systems, and by how many inches it makes the figure higher."""
    if max(map(len, labels)) <= LONGEST_IN_COLUMNS:
        return 2, 0.0
    return 1, 0.085 * len(labels)


def _cut(name: str, longest: int) -> str:
    if len(name) <= longest:
        return name
    end = (longest - 1) // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both coordinates, by the first; small is good in both."""
    best, out = math.inf, []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            best = points[i][1]
            out.append(i)
    return out


def trade_offs(points: Sequence[Point], unit: str) -> list[tuple[Figure, str]]:
    """Latency, size and memory, each against the error rate, with intervals where there are any and the front; and what each shows."""
    axes_: list[tuple[str, Callable[[Point], float], Callable[[Point], Interval | None]]] = [
        ("median latency, ms", lambda p: p.latency, lambda p: p.latency_interval),
        ("size, MB", lambda p: p.row["size_mb"], lambda _: None),
        ("peak memory, MB", lambda p: p.row["peak_rss_mb"], lambda _: None),
    ]
    return [(_trade_off(points, unit, *axis), f"{unit.upper()} against {axis[0]}") for axis in axes_]


def _trade_off(
    points: Sequence[Point],
    unit: str,
    label: str,
    of: Callable[[Point], float],
    spread: Callable[[Point], Interval | None],
) -> Figure:
    labels = labels_of([point.name for point in points])
    columns, more = _legend(labels)
    with new_figure(height=3.4 + more) as (figure, (axes,)):
        places = [(of(p), p.rate) for p in points]
        best = front(places)
        axes.step(
            [places[i][0] for i in best],
            [places[i][1] for i in best],
            where="post",
            color=FAINT,
            linestyle=":",
            label="Pareto front",
        )
        for number, (point, name, (x, y)) in enumerate(zip(points, labels, places, strict=True)):
            how: dict[str, Any] = {
                "color": INK if point.teacher else series_colour(number - 1),
                "marker": "*" if point.teacher else series_marker(number - 1),
                "markersize": 9 if point.teacher else 6,
                "linestyle": "none",
            }
            axes.errorbar(
                [x], [y], _bars(y, point.rate_interval), _bars(x, spread(point)), capsize=2.5, elinewidth=1, **how
            )
            axes.plot([x], [y], label=legend_label(name), **how)  # alone in the legend, without its bars
        values = [v for (x, _), p in zip(places, points, strict=True) for v in (x, *(spread(p) or ()))]
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 1.25, max(values) * 1.25)
        plain_log_ticks(axes.xaxis, [min(values) / 1.25, max(values) * 1.25])
        axes.set_ylim(bottom=0)
        axes.set(xlabel=f"{label} (log)", ylabel=f"{unit.upper()}, %")
        legend_below(figure, axes, columns)
    return figure


def _bars(value: float, interval: Interval | None) -> list[list[float]] | None:
    """Lengths of an error bar below and above."""
    return None if interval is None else [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def stage_shares(section: Section, named: Callable[[str], str]) -> Figure:
    """Where each system's time goes: a bar of shares, with the sum of the stages' medians."""
    systems = section["systems"]
    with new_figure(height=1.5 + 0.32 * len(systems)) as (figure, (axes,)):
        names = labels_of([named(s["name"]) for s in systems])
        labels = [f"{name}, {sum(s['stages_ms'].values()):.0f} ms" for name, s in zip(names, systems, strict=True)]
        left = [0.0] * len(systems)
        known = [stage for stage in STAGES if all(stage in s["stages_ms"] for s in systems)]
        for number, stage in enumerate(known):
            share = [100 * s["stages_ms"][stage] / (sum(s["stages_ms"].values()) or 1.0) for s in systems]
            axes.barh(labels, share, left=left, color=series_colour(number), label=stage.replace("_", " "), height=0.6)
            left = [a + b for a, b in zip(left, share, strict=True)]
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="share of the time, %", xlim=(0, 100))
        legend_below(figure, axes, 4)
    return figure


def latency_by_length(section: Section, named: Callable[[str], str]) -> Figure:
    """Each system's latency on each clip against the clip's length; of many clips, some that are evenly spread in the corpus."""
    every = -(-len(section["clips"]) // MOST_CLIPS)
    seconds = [clip["seconds"] for clip in section["clips"]][::every]
    labels = labels_of([named(system["name"]) for system in section["systems"]])
    columns, more = _legend(labels)
    with new_figure(height=3.1 + more) as (figure, (axes,)):
        everything: list[float] = []
        for number, (system, name) in enumerate(zip(section["systems"], labels, strict=True)):
            ms = [max(float(t), 1e-3) for t in clip_latencies(section, system["name"])[::every]]
            everything += ms
            teacher = system["kind"] == "teacher"
            axes.plot(
                seconds, ms, linestyle="none", markersize=3, alpha=0.7, label=legend_label(name),
                color=INK if teacher else series_colour(number - 1), marker="*" if teacher else series_marker(number - 1),
            )  # fmt: skip
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis, everything)
        axes.set(xlabel="seconds of speech", ylabel="latency, ms (log)", xlim=(0, None))
        legend_below(figure, axes, columns)
    return figure


def learning_curves(curves: Curves) -> list[tuple[Figure, str]]:
    """Losses, and validation error rates if there are any, by optimizer step; a dotted line ends a stage. And what each shows."""
    out = []
    with new_figure() as (figure, (axes,)):
        shown: list[float] = []
        for number, loss in enumerate(LOSSES):
            # a loss that a stage lacks is stored as 0, which a logarithmic axis cannot show
            values = [value if value > 0 and math.isfinite(value) else math.nan for value in curves[loss]]
            if positive := [v for v in values if not math.isnan(v)]:
                axes.plot(curves["steps"], values, color=series_colour(number), label=loss, linewidth=1)
                shown += positive
        if shown:
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis, shown)
        axes.set(xlabel="optimizer steps", ylabel="loss (log)")
        _mark_stages(axes, curves)
        legend_below(figure, axes, 4)
    out.append((figure, "losses by optimizer step"))
    if curves["validation"]:
        with new_figure() as (figure, (axes,)):
            steps = [v["step"] for v in curves["validation"]]
            for number, rate in enumerate(("wer", "cer")):
                values = [v["wer"] if rate == "wer" else v["cer"] for v in curves["validation"]]
                axes.plot(
                    steps,
                    values,
                    color=series_colour(number),
                    marker=series_marker(number),
                    markersize=4,
                    label=rate.upper(),
                )
            axes.set(xlabel="optimizer steps", ylabel="validation, %", ylim=(0, None))
            _mark_stages(axes, curves)
            legend_below(figure, axes, 2)
        out.append((figure, "validation error rates by optimizer step"))
    return out


def _mark_stages(axes: Axes, curves: Curves) -> None:
    """A dotted line where a stage ends, and the stages' names above the axes."""
    stages = curves["stage"]
    ends = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1]]
    for i in ends:
        axes.axvline(curves["steps"][i - 1], color=FAINT, linestyle=":", linewidth=1)
    for i in [0, *ends]:
        axes.annotate(
            _cut(stages[i], LONGEST_LABEL),
            (curves["steps"][i - 1] if i else curves["steps"][0], 1.01),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color=FAINT,
            in_layout=False,
        )
