"""The benchmark of kills, shortened: commands that are killed lose nothing, end the same, and leave nothing."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["synthesize", "pack", "export"])
def test_a_killed_command_loses_nothing(tmp_path, command):
    path = tmp_path / "kills.json"
    kill = [sys.executable, str(BENCHMARKS / "kills.py"), "--kills", "2", "--only", command, "--json", str(path)]
    environment = {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(
        kill, capture_output=True, text=True, check=False, timeout=1200, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads(path.read_text())["figures"]
    assert figures["kills"] == 2
    assert figures["ended"] >= 1
    assert figures["identical"] == figures["second_refused"] == 1
