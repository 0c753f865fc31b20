"""A search's result as a terminal table."""

from __future__ import annotations

import typer

from export.search.outcome import SearchResult
from export.search.rows import Figure

HEADS: dict[Figure, str] = {
    "wer": "WER %", "p50_ms": "p50 ms", "encoder_ms": "encoder ms", "decoder_ms": "decoder ms", "size_mb": "MB", "peak_rss_mb": "peak RSS MB",
}  # fmt: skip


def print_search(found: SearchResult) -> None:
    """Print the precisions, the choice first, and its result on the test clips."""
    from export.measurement.tables import interval
    from workbench.core.tables import print_rows

    # a model with a CTC head has no decoder, whose time is 0
    shown = [k for k in HEADS if k != "decoder_ms" or any(row[k] for row in found.rows)]
    rows = []
    for row in sorted(found.rows, key=lambda r: (r["name"] != found.name, r["p50_ms"])):
        mark = (
            "chosen" if row["name"] == found.name else ", ".join(row["breaks"]) or ("Pareto" if row["pareto"] else "")
        )
        numbers = (f"{row[k]:g}" for k in shown)
        rows.append((row["name"], *numbers, mark))
    print_rows(("precision", *(HEADS[k] for k in shown), ""), rows, "on validation")
    for note in found.notes:
        typer.echo(note)
    if found.test:
        against = found.test["wer_difference"]
        typer.echo(
            f"{found.name} on {found.test['clips']} test clips: WER {found.test['systems'][-1]['wer']:.2f} %, "
            f"{against['points']:+.2f} points against fp32 ({interval(against['ci'], '+')}), speed-up {found.test['speedup']}"
        )
