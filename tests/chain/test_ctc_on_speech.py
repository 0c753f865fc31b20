"""The real thing: the encoder of Whisper base, with a new head over characters, learns to write what a speaker says."""

import pytest

from tests.training.test_ctc_training import FROM_LABELS, steps
from workbench.config.recipe import parse_recipe
from workbench.corpus import open_corpus
from workbench.evaluation.transcribe import validate
from workbench.models import open_family
from workbench.training.trainer import distill


@pytest.mark.slow
def test_the_encoder_of_whisper_base_learns_to_write_characters(speech, cache, tmp_path, monkeypatch):
    from workbench.models.resolve import resolve_teacher

    monkeypatch.delenv("WORKBENCH_CACHE")
    teacher = resolve_teacher("whisper-base")
    monkeypatch.setenv("WORKBENCH_CACHE", str(cache))
    content = {
        "output": str(tmp_path / "run"), "teacher": str(teacher), "corpus": str(speech(5)),
        "student": {"encoder_layers": 3, "ctc": "characters"},
        "stages": {"ctc": {**FROM_LABELS, "epochs": 60, "learning_rate": 3e-4, "batch_seconds": 5.0}}, "validate_every": 60,
    }  # fmt: skip
    run = parse_recipe(content, "test")
    family = open_family(distill(run))
    heard = validate(family.load(), family, open_corpus(run.corpus, "train"), 0.4)
    assert heard.scores()["cer"] < 5, heard.hypotheses
    lines = steps(run)
    assert lines[0]["task"] > 2
    assert lines[-1]["task"] < 0.2
