"""Recipes of tiny students with a CTC head."""

import pytest

from tests.models.ctc_checkpoints import write_checkpoint

ALL = {"trainable": "all", "epochs": 2, "learning_rate": 1e-3, "batch_seconds": 6.0}
FROM_LABELS = {**ALL, "weighting": {"name": "fixed", "alpha": 0}}
SILENCE = {"train_min": 0.0, "train_max": 0.2, "inference": 0.0}
# what makes a schedule begin within two epochs
ACTIVE = {
    "almkd": {"start_epoch": 0, "update_every": 1, "initial_alpha": 0.5},
    "amal": {"start_epoch": 0, "update_every": 1},
    "askd": {"phase1": 0.5},
    "adakd": {"k0": 2, "k1": -1},
}


@pytest.fixture
def ctc(recipe, tmp_path):
    """Factory of recipes with a random wav2vec2 as teacher, and two of its layers as student."""

    def make(name="run", kind="wav2vec2", stage=None, **changes):
        folder = tmp_path / kind
        if not folder.exists():
            write_checkpoint(folder, kind)
        given = {"student": {"encoder_layers": 2}, "trailing_silence": SILENCE, "targets": {"top_k": 32}, **changes}
        return recipe(name, teacher=str(folder), stages={"all": {**ALL, **(stage or {})}}, **given)

    return make


@pytest.fixture
def over_whisper(recipe):
    """Factory of recipes whose student is the encoder of the tiny Whisper with a CTC head."""

    def make(name="run", units="characters", stages=None, student=None, **changes):
        encoder = {**ALL, "trainable": "encoder", "epochs": 1, "encoder_matching": 1.0, "decoder_losses": False}
        stages = stages or {"encoder": encoder, "ctc": FROM_LABELS}
        return recipe(name, student={"encoder_layers": 2, "ctc": units, **(student or {})}, stages=stages, **changes)

    return make
