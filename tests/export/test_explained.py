"""What is reported of a verification that failed: what was compared, against which threshold, where the first difference is, what to do."""

import json
from types import SimpleNamespace

import pytest

from export.verification import verify
from export.verification.agreement import ReferenceTranscript, explain
from workbench.api import check_verified
from workbench.core.errors import UserError

CLIPS = [SimpleNamespace(id=f"clip-{i}", text="turn the lights on", language="en", speed=1.0) for i in range(4)]
SAID = [ReferenceTranscript("turn the lights on", [1, 2, 3], False, None) for _ in CLIPS]


@pytest.fixture
def compared(monkeypatch, tmp_path):
    def compare(client, precision, *transcripts, error=""):
        clips = [{"text": text, "tokens": tokens} for text, tokens in transcripts]
        result = None if error else {"version": "9.9", "clips": clips}
        monkeypatch.setattr(verify, "_run", lambda *_: (result, error))
        return verify._compare(client, {"precision": precision, "clips": []}, tmp_path, CLIPS, SAID, 0.5)

    return compare


RIGHT = ("turn the lights on", [1, 2, 3])
WRONG = ("turn the knights off", [1, 2, 4])


def test_unequal_tokens_are_explained(compared):
    said = explain(compared("edge", "fp32", RIGHT, WRONG, RIGHT, RIGHT))
    assert said[0].startswith("edge fp32: 3 of 4 clips equal torch's")
    assert "99 % of the clips equal" in said[1]
    assert "clip clip-1: 'turn the knights off', torch 'turn the lights on'" in said[2]
    assert "to do:" in said[3]


def test_word_errors_are_explained(compared):
    said = "\n".join(explain(compared("edge", "int8", WRONG, WRONG, WRONG, RIGHT)))
    assert "WER 37.50 % (torch 0.00 %)" in said
    assert "at most 0.5 points above torch's, or 2 more word errors" in said
    assert "choose another --precision" in said


def test_a_client_that_did_not_run_is_explained(compared):
    said = explain(compared("edge", "int8", error="exit status 1: ImportError: libfoo"))
    assert said[0] == "edge int8: the client did not run (exit status 1: ImportError: libfoo)"
    assert "--client edge" in said[-1]


def test_failures_are_shown_before_the_error_and_kept_as_json(compared, caplog, tmp_path):
    failing = compared("edge", "fp32", WRONG, WRONG, WRONG, WRONG)
    passing = compared("edge", "int8", RIGHT, RIGHT, RIGHT, RIGHT)
    assert passing["first_difference"] is None
    found = json.loads(json.dumps({"clients": [passing, failing]}))
    with pytest.raises(UserError, match="fails in edge fp32; the reasons are above"):
        check_verified(tmp_path, found)
    assert caplog.messages == explain(failing)
