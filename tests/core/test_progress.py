"""Bars at a terminal, with log lines above them; plain lines elsewhere."""

import os
import pty
import re
import subprocess
import sys

import pytest

from workbench.core import progress

SCRIPT = """
import logging, sys, time, warnings
logging.basicConfig(format="%(message)s", stream=sys.stderr)
log = logging.getLogger("workbench")
library = logging.getLogger("library")
library.addHandler(logging.StreamHandler())
library.propagate = False
from workbench.core.progress import Progress
with Progress("outer", 2) as outer:
    for i in range(2):
        log.warning("ours %d", i)
        library.warning("a library's %d", i)
        warnings.warn_explicit(f"a warning {i}", UserWarning, "file.py", 1)
        with Progress("inner", 2) as inner:
            inner.advance(2, "a [note]")
            time.sleep(0.3)
        outer.advance()
log.warning("ours at the end")
"""
LINES = [f"{who} {i}" for i in range(2) for who in ("ours", "a library's", "file.py:1: UserWarning: a warning")]


def at_a_terminal(script=SCRIPT, **environment):
    master, slave = pty.openpty()
    started = subprocess.Popen([sys.executable, "-c", script], stderr=slave, env={**os.environ, "COLUMNS": "100", **environment})  # fmt: skip
    os.close(slave)
    shown = b""
    try:
        while block := os.read(master, 65536):
            shown += block
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(master)
    assert started.wait() == 0
    return shown.decode()


def test_log_lines_stand_above_the_bars():
    shown = at_a_terminal(TERM="xterm")
    for line in [*LINES, "ours at the end"]:
        # each on a line of its own, where a bar has been erased or none was drawn
        assert re.search(rf"(\n|\x1b\[2K|\x1b\[\?25[hl]|^){re.escape(line)} *\r\n", shown), line
    assert "outer" in shown
    assert "a [note]" in shown
    assert shown.endswith("\x1b[?25hours at the end\r\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_without_a_terminal_that_can_draw_lines_are_plain(terminal):
    if terminal:
        shown = at_a_terminal(TERM="dumb").replace("\r\n", "\n")
    else:
        environment = {**os.environ, "FORCE_COLOR": "1"}
        shown = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment).stderr
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert set(LINES) <= set(shown.splitlines())
    assert "inner: 2/2, 0 s left  a [note]" in shown


def test_hidden_progress_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress.Progress, "hidden", False)
    progress.hide()
    with progress.Progress("clips", 2) as bar:
        bar.advance(2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress.Progress, "hidden", False)
    with progress.Progress("clips", 2) as bar:
        bar.advance(2)
    assert "clips: 2/2" in capsys.readouterr().err


STEP = """
import logging, sys, time
logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
from workbench.core.progress import step
with step("quantizing %s", "the encoder"):
    logging.getLogger("workbench").warning("a warning")
    time.sleep(1.5)
"""


def test_a_step_is_a_line_in_a_log_and_has_a_running_clock_at_a_terminal():
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["quantizing the encoder", "a warning"]
    shown = at_a_terminal(STEP, TERM="xterm")
    assert "0:00:01" in shown
    assert re.search(r"(\n|\x1b\[2K)a warning *\r\n", shown)


def test_what_has_no_known_end_is_counted(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    with progress.Progress("reading", None) as bar:
        bar.advance()
        bar.advance(2, "more")
    assert capsys.readouterr().err.splitlines() == ["reading: 1", "reading: 3  more"]
