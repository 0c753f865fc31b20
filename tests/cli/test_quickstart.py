"""`workbench quickstart`: the chain in one command, and what it says at the end."""

import copy
import json
from pathlib import Path

import pytest

from tests.conftest import ROOT
from workbench.cli.app import main
from workbench.cli.quickstart import _summary

REPORT = json.loads((ROOT / "docs" / "results" / "quickstart" / "report.json").read_text())


def test_the_chain_runs_and_ends_with_what_to_do_next(
    tiny_checkpoint, cache, speech, tmp_path, monkeypatch, capsys, caplog
):
    run = tmp_path / "run"
    short = [
        f"teacher={tiny_checkpoint}",
        f"corpus={speech()}",
        "stages.encoder.epochs=1",
        "stages.decoder.epochs=1",
        "targets.top_k=200",
    ]
    monkeypatch.setattr("sys.argv", ["workbench", "quickstart", "-o", str(run), "--no-verify", *short])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    for number in (1, 2, 3):
        assert f"Step {number} of 3: " in caplog.text
        assert f"Step {number} of 3 took" in caplog.text
    assert "too few clips" in out
    assert f"workbench demo {run / 'bundle'}" in out
    assert (run / "report.html").is_file()


def test_the_verdict_follows_from_the_interval(capsys):
    _summary(REPORT, Path("bundle"), Path("run"))
    assert "Ship fp32: 8.2 times as fast" in capsys.readouterr().out
    worse = copy.deepcopy(REPORT)
    for system in worse["systems"][1:]:
        system["wer_difference"]["ci"] = [0.7, 2.0]
    _summary(worse, Path("bundle"), Path("run"))
    assert "Ship none of these" in capsys.readouterr().out
