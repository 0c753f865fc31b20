"""A second family trains, resumes and is scored with nothing but its own file: what knows Whisper's inside is Whisper's."""

import json

import pytest
import torch
from safetensors.torch import load_file

import workbench.models
import workbench.training.stage
from tests.conftest import DECODER, ENCODER
from tests.models.toy_family import Speller, Toy
from workbench.corpus import open_corpus
from workbench.evaluation.transcribe import validate
from workbench.models import open_family
from workbench.training.trainer import distill

ASKD = {"name": "askd", "phase1": 0.5}


@pytest.fixture
def toy(tmp_path, monkeypatch, recipe):
    """Factory of recipes with a teacher of the toy family."""
    monkeypatch.setitem(workbench.models.FAMILIES, "toy", lambda: Toy)
    folder = tmp_path / "toy"
    folder.mkdir()
    torch.manual_seed(0)
    Toy.save(None, Speller(Toy.width, 2, 3), folder)
    (folder / "letters.txt").write_text("a to z")
    return lambda name="run", **changes: recipe(name, teacher=str(folder), **changes)


def stages(**decoder):
    return {"encoder": {**ENCODER, "decoder_losses": True}, "decoder": {**DECODER, **decoder}}


def test_it_trains_resumes_and_is_scored(toy, monkeypatch):
    whole, killed = toy("whole", stages=stages()), toy("killed", stages=stages(), checkpoint_minutes=1e-9)
    student = distill(whole)
    step = workbench.training.stage.StageTrainer.step

    def dying(self, *args):
        if self.state.progress.step == 4:
            raise KeyboardInterrupt
        step(self, *args)

    monkeypatch.setattr(workbench.training.stage.StageTrainer, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        distill(killed)
    monkeypatch.setattr(workbench.training.stage.StageTrainer, "step", step)
    again = distill(killed)
    first, second = (load_file(folder / "model.safetensors") for folder in (student, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (student / "letters.txt").read_text() == "a to z"
    family = open_family(student)
    assert len(family.load().mouth) == 2
    scored = validate(family.load(), family, open_corpus(whole.corpus, "validation"), 0.4).scores()
    assert scored["wer"] == pytest.approx(json.loads((whole.output / "scores.json").read_text())["validation"]["wer"])


def test_each_stage_trains_the_part_that_it_names(toy):
    trained = distill(toy("encoder", stages={"encoder": {**ENCODER, "decoder_losses": True}}))
    found, before = (
        load_file(trained / "model.safetensors"),
        load_file(open_family(trained).folder.parents[1] / "toy" / "model.safetensors"),
    )
    assert not torch.equal(found["ears.0.weight"], before["ears.0.weight"])
    assert torch.equal(found["letters.weight"], before["letters.weight"])


@pytest.mark.parametrize(
    "decoder",
    [
        {"weighting": {"name": "almkd", "start_epoch": 0, "update_every": 1}},
        {"weighting": {"name": "mc_dropout"}},
        {"weighting": {**ASKD, "self_teacher": "snapshot"}},
        {"weighting": {**ASKD, "self_teacher": "intermediate"}},
        {"on_policy": {"method": "gkd", "fraction": 0.5}},
        {"on_policy": {"method": "speculative", "fraction": 0.5}},
        {"encoder_matching": 0.5},
    ],
    ids=lambda value: str(value),
)
def test_what_looks_into_a_model_asks_its_family(toy, decoder):
    run = toy(stages={"all": {**DECODER, "trainable": "all", **decoder}})
    assert open_family(distill(run)).load().sizes == {"width": 24, "ears": 2, "mouth": 2}
