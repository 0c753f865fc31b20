"""Tables on the screen and in pipes: one that is too wide is transposed or written as blocks, so that no word is cropped or split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

Row = Sequence[str]


def print_rows(
    columns: Row, rows: Sequence[Row], title: str = "", caption: str = "", prose: bool = False, styles: Row = ()
) -> None:
    """Print a table as wide as the terminal allows (80 columns in a pipe).

    Args:
        columns: heads; the first column names the rows.
        rows: cells.
        title: a line above.
        caption: a line below.
        prose: the cells are sentences, which may be wrapped; otherwise a table that does not fit is transposed.
        styles: rich's styles for the rows' names.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    table = [list(columns), *map(list, rows)]
    turned = [list(column) for column in zip(*table, strict=True)]
    if title:
        console.print(Text(title, style="italic"))
    if (widths := _widths(table, console.width, wrapped=prose)) is not None:
        console.print(_grid(table, widths, prose, styles))
    elif not prose and (widths := _widths(turned, console.width, wrapped=True)) is not None:
        console.print(_grid(turned, widths))
    else:
        for row, style in zip_longest(rows, styles[: len(rows)], fillvalue=""):
            said = [
                f"{head}: {cell}" if head else cell for head, cell in zip(columns[1:], row[1:], strict=True) if cell
            ]
            console.print(Text(row[0], style=style or "bold"))
            for line in said if prose else ["; ".join(said)]:
                console.print(Padding(Text(line, overflow="fold"), (0, 0, 0, 2)))
    if caption:
        console.print(Text(caption, style="dim"))


def _grid(table: Sequence[Row], widths: Sequence[int], prose: bool = False, styles: Row = ()) -> object:
    """Cells in columns of given widths; figures are right-aligned."""
    from rich.table import Table
    from rich.text import Text

    grid = Table()
    for i, (head, width) in enumerate(zip(table[0], widths, strict=True)):
        grid.add_column(Text(head), width=width, justify="left" if prose or i == 0 else "right")
    for row, style in zip_longest(table[1:], styles[: len(table) - 1], fillvalue=""):
        grid.add_row(Text(row[0], style=style), *map(Text, row[1:]))  # as text, because a name may hold rich's markup
    return grid


def _widths(table: Sequence[Row], room: int, wrapped: bool) -> list[int] | None:
    """Width of each column in which its words stay whole, or, if not `wrapped`, its cells; None where there is no room for that."""
    from rich.cells import cell_len

    whole = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    words = [max(cell_len(w) for cell in column for w in cell.split() or [""]) for column in zip(*table, strict=True)]
    widths = words if wrapped else whole
    spare = room - sum(widths) - 3 * len(widths) - 1  # borders and padding
    if spare < 0:
        return None
    for _ in range(min(spare, sum(whole) - sum(widths))):
        tightest = max(range(len(widths)), key=lambda i: whole[i] / max(widths[i], 1))
        widths[tightest] += 1
    return widths
