"""Tables at 80 columns, as in a pipe: every word and figure stands whole."""

import json
import re

import pytest

from export.measurement.tables import print_table
from tests.conftest import ROOT
from workbench.core.tables import print_rows

REPORT = ROOT / "docs" / "results" / "quickstart" / "report.json"
COLUMNS = ("system", "WER %", "vs teacher")
ROWS = [("teacher", "3.36", ""), ("student [int8]", "2.10", "-1.26 (-2.89 to +0.51)")]


@pytest.fixture(autouse=True)
def _pipe(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def assert_whole(shown, cells, width=80):
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    words = set(re.split(r"[\s│┃]+", shown))
    for word in " ".join(cells).split():
        assert {word, word + ";", word + ":"} & words, word


@pytest.mark.parametrize(("width", "rows"), [(80, 2), (40, 2), (30, 2), (80, 12)])
def test_a_table_that_is_too_wide_is_turned_or_written_as_blocks(width, rows, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    table = [(f"{name} {i}", *rest) for i in range(rows // 2) for name, *rest in ROWS]
    columns, wide = (COLUMNS, table) if width < 80 else ((*COLUMNS, *"abcdefghij"), [(*row, *["1234567890"] * 10) for row in table])  # fmt: skip
    print_rows(columns, wide, title="on clips")
    assert_whole(capsys.readouterr().out, ["on clips", *columns[1:], *(cell for row in wide for cell in row)], width)


def test_a_table_that_fits_is_a_table(capsys):
    print_rows(COLUMNS, ROWS)
    line = next(line for line in capsys.readouterr().out.splitlines() if "int8" in line)
    assert re.fullmatch(r"│ student \[int8\] │ +2.10 │ -1.26 \(-2.89 to \+0.51\) │", line)


def test_a_measurement_can_be_read_in_80_columns(capsys):
    report = json.loads(REPORT.read_text())
    print_table(report)
    shown = capsys.readouterr().out
    figures = [f"{s[rate]:.2f}" for s in report["systems"] for rate in ("wer", "cer")]
    assert_whole(shown, [*figures, *(s["name"] for s in report["systems"]), "hallucinated"])


def test_prose_is_wrapped_between_words(capsys):
    path = "/a/folder/with/a/rather/long/name/in/which/nothing/may/be/cropped"
    print_rows(("", "topic", "found", "what to do"), [("ok", "disk", f"cache {path}: 67.4 GB free", "set WORKBENCH_CACHE " * 5)], prose=True)  # fmt: skip
    assert_whole(capsys.readouterr().out, ["disk", "cache", path + ":", "67.4", "WORKBENCH_CACHE"])
