"""A search's result as a terminal table."""

from __future__ import annotations

import typer

from export.search.outcome import SearchResult
from export.search.rows import Figure

SHOWN: tuple[Figure, ...] = ("wer", "p50_ms", "encoder_ms", "decoder_ms", "size_mb", "peak_rss_mb")


def print_search(found: SearchResult) -> None:
    """Print the precisions, the choice first, and its result on the test clips."""
    from export.measurement.tables import interval
    from workbench.core.tables import print_rows

    rows = []
    for row in sorted(found.rows, key=lambda r: (r["name"] != found.name, r["p50_ms"])):
        mark = (
            "chosen" if row["name"] == found.name else ", ".join(row["breaks"]) or ("Pareto" if row["pareto"] else "")
        )
        numbers = (f"{row[k]:g}" for k in SHOWN)
        rows.append((row["name"], *numbers, mark))
    heads = ("precision", "WER %", "p50 ms", "encoder ms", "decoder ms", "MB", "peak RSS MB", "")
    print_rows(heads, rows, "on validation")
    for note in found.notes:
        typer.echo(note)
    if found.test:
        against = found.test["wer_difference"]
        typer.echo(
            f"{found.name} on {found.test['clips']} test clips: WER {found.test['systems'][-1]['wer']:.2f} %, "
            f"{against['points']:+.2f} points against fp32 ({interval(against['ci'], '+')}), speed-up {found.test['speedup']}"
        )
