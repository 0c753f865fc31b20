"""Plots as static SVG for pages, and as figures for notebooks: drawn by matplotlib in colours that a page's style sheet can replace.

A page's plot is some tens of kB, runs no script, prints, and follows the reader's light or dark colours; plotly's script alone has 4 MB.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# names of style-sheet variables, and their colours in a notebook and on a light page; no two are equal
INK, FAINT, GRID = "#24292f", "#59636e", "#d8dee4"
SERIES = ("#0969da", "#c4561a", "#1a7f37", "#8250df", "#bf3989", "#7d6608", "#1b7c83", "#57534e")
ORDERED = ("#1f4e79", "#4b83b5", "#8c8c8c", "#d08a5b", "#b5523b")  # from least to most
LIGHT = {
    "ink": INK, "faint": FAINT, "grid": GRID,
    **{f"series-{i}": colour for i, colour in enumerate(SERIES)}, **{f"ordered-{i}": colour for i, colour in enumerate(ORDERED)},
}  # fmt: skip
DARK = {
    "ink": "#e6edf3", "faint": "#9da7b1", "grid": "#30363d",
    **{f"series-{i}": colour for i, colour in enumerate(("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#f778ba", "#d4b106", "#39c5cf", "#c9c2bb"))},
    **{f"ordered-{i}": colour for i, colour in enumerate(("#79b8ff", "#5a97d0", "#a8a8a8", "#e0a37a", "#ff7b5c"))},
}  # fmt: skip
MARKERS = "osD^vPX"  # 7 and 8 colours: no two of 56 series look alike; the star is left for what they are compared with
STYLE: Any = {  # matplotlib's settings; their type lists every name there is
    "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK, "axes.titlecolor": INK, "xtick.color": FAINT, "ytick.color": FAINT,
    "grid.color": GRID, "grid.linewidth": 0.6, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.8, "axes.titlelocation": "left", "legend.frameon": False, "lines.linewidth": 1.4, "figure.facecolor": "white",
    "axes.facecolor": "none", "savefig.facecolor": "white", "text.parse_math": False,
}  # fmt: skip


@contextlib.contextmanager
def new_figure(
    width: float = 4.3, height: float = 3.1, columns: int = 1, **how: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """An empty figure and its axes, side by side, to draw on in the block; texts are plain, whatever signs are in them.

    Args:
        width: inches; the default's text is readable on a phone, where a page shrinks it to the screen.
        height: inches.
        columns: number of axes.
        how: as for matplotlib's `Figure.subplots`, such as `sharey`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False, **how)[0]
        yield figure, list(axes)


def series_colour(number: int) -> str:
    """Colour of a series."""
    return SERIES[number % len(SERIES)]


def series_marker(number: int) -> str:
    """Marker of a series: colours alone do not tell series apart for everybody, nor in print."""
    return MARKERS[number % len(MARKERS)]


def legend_label(name: str) -> str:
    """A name as a series' label: matplotlib leaves those that begin with an underscore out of legends."""
    return f" {name}" if name.startswith("_") else name


def legend_below(figure: Figure, axes: Axes, columns: int, title: str | None = None) -> None:
    """A legend under the axes, where it hides no point."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title)


def plain_log_ticks(axis: Any, values: Sequence[float]) -> None:
    """Ticks 1, 2, 3, 5, 10, ... written as plain numbers, for a logarithmic axis that shows some values above 0."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(values), max(values)
    steps = [m * 10.0**e for e in range(-9, 10) for m in (1, 2, 3, 5)]
    inside = [t for t in steps if low / 1.01 <= t <= high * 1.01]
    for digits in ("125", "1"):  # fewer where there are many
        inside = inside if len(inside) <= 7 else [t for t in inside if f"{t:e}"[0] in digits]
    if len(inside) < 2:  # a narrow range: the nearest on either side as well
        inside = [
            max((t for t in steps if t <= low), default=low),
            *inside,
            min((t for t in steps if t >= high), default=high),
        ]
    axis.set_major_locator(FixedLocator(sorted(set(inside))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def as_svg(figure: Figure, described: str) -> str:
    """A figure as an `<svg>` element for a page that holds `colour_variables`.

    Args:
        figure: from `new_figure`.
        described: what it shows, for those who cannot see it.
    """
    import matplotlib as mpl

    out = io.StringIO()
    # equal ids of two figures on a page then mean equal content; nothing of the file depends on when it is written
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "workbench"}), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph"
        )  # of scripts that matplotlib's font lacks; the reader's browser has others
        figure.savefig(
            out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), transparent=True
        )
    text = out.getvalue()
    width, height = (72 * float(inches) for inches in figure.get_size_inches())  # matplotlib's SVG is in points
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    body = re.sub(r" font-family: [^;\"]*;", "", body)  # the page's
    body = re.sub(
        r"font: ([^;\"']*?[0-9.]+px) '[^;\"]*", r"font: \1 system-ui, sans-serif", body
    )  # as older versions write it
    for name, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{name})")
    head = f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width:{width * 1.5:.0f}px" role="img" aria-label="{html.escape(described)}">'
    return head + re.sub(r"\n\s*", "\n", body)


def colour_variables(dark: bool = False) -> str:
    """Declarations of a style sheet: the plots' colours on a light or dark page."""
    return "".join(f"--{name}:{colour};" for name, colour in (DARK if dark else LIGHT).items())
