"""What a search found, as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.search import Search


def print_search(found: Search) -> None:
    """Print the precisions, the choice first, and what the test clips say of it."""
    from rich.console import Console
    from rich.table import Table

    from export.report import interval

    table = Table(
        "precision", "WER %", "p50 ms", "encoder ms", "decoder ms", "MB", "peak RSS MB", "", title="on validation"
    )
    for row in sorted(found.rows, key=lambda r: (r["name"] != found.name, r["p50_ms"])):
        mark = (
            "chosen" if row["name"] == found.name else ", ".join(row["breaks"]) or ("Pareto" if row["pareto"] else "")
        )
        numbers = (f"{row[k]:g}" for k in ("wer", "p50_ms", "encoder_ms", "decoder_ms", "size_mb", "peak_rss_mb"))
        table.add_row(row["name"], *numbers, mark)
    console = Console(width=max(Console().width, 120))
    console.print(table)
    for note in found.notes:
        console.print(note)
    if found.test:
        against = found.test["wer_difference"]
        console.print(
            f"{found.name} on {found.test['clips']} test clips: WER {found.test['systems'][-1]['wer']:.2f} %, "
            f"{against['points']:+.2f} points against fp32 ({interval(against['ci'], '+')}), {found.test['speedup']} times as fast"
        )
