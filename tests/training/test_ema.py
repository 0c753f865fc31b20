"""The moving average of the student's parameters, against its closed form, in one process and sharded over two."""

import pytest
import torch
from accelerate import Accelerator

import workbench.training.stage
from tests.conftest import DECODER
from tests.training.test_engine import launch
from tests.training.test_targets_and_training import same, weights
from workbench.training.ema import MovingAverage
from workbench.training.trainer import distill

DECAY = 0.9


def test_the_average_follows_its_recurrence_and_frozen_parameters_are_left_out():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].requires_grad_(False)
    average = MovingAverage(model, decay=0.8)
    assert set(average.state_dict()) == {"0.weight", "0.bias"}
    expected = float(model[0].weight[0, 0].detach())
    for step in range(30):
        with torch.no_grad():
            model[0].weight.fill_(float(step))
        average.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert float(average.state_dict()["0.weight"][0, 0]) == pytest.approx(expected, rel=1e-5)
    with average.swapped_in():
        assert float(model[0].weight[0, 0].detach()) == pytest.approx(expected, rel=1e-5)
    assert float(model[0].weight[0, 0].detach()) == 29.0
    restored = MovingAverage(model, decay=0.8)
    restored.load_state_dict(average.state_dict())
    restored.fill()
    assert float(model[0].weight[0, 0].detach()) == pytest.approx(expected, rel=1e-5)


def initial(parsed):
    """Weights of the untrained student, by the names of its parameters."""
    from workbench.models import open_family
    from workbench.models.resolve import resolve_teacher
    from workbench.models.whisper.students import build_student

    model = build_student(open_family(resolve_teacher(parsed.teacher)).load(), parsed.student)
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def in_closed_form(run, monkeypatch):
    """Train in one process without an average; returns the one that the parameters after each step would have."""
    step, average = workbench.training.stage.StageTrainer.step, initial(run)

    def noting(self, *args):
        number = self.state.progress.stage_step
        step(self, *args)
        decay = min(DECAY, (1 + number) / (10 + number))
        for name, parameter in self.context.model.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * parameter.detach()

    monkeypatch.setattr(workbench.training.stage.StageTrainer, "step", noting)
    distill(run)
    monkeypatch.setattr(workbench.training.stage.StageTrainer, "step", step)
    return average


def one_epoch(**changes):
    # validated once, so that the student that is kept is the last average
    return {"decoder": {**DECODER, "epochs": 1, "max_steps": 5, "micro_batches": 2, **changes}}


def test_the_average_follows_parameters_that_replace_the_models_own(recipe, monkeypatch):
    """What FSDP does in `prepare`, without its processes: every parameter becomes another tensor."""
    prepare = Accelerator.prepare

    def replacing(self, student, optimizer):
        replaced = {}
        for module in student.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    new = replaced.setdefault(
                        parameter, torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                    )
                    module._parameters[name] = new
        for group in optimizer.param_groups:
            group["params"] = [replaced[p] for p in group["params"]]
        return prepare(self, student, optimizer)

    expected = in_closed_form(recipe("plain", stages=one_epoch()), monkeypatch)
    run = recipe("averaged", ema_decay=DECAY, stages=one_epoch())
    monkeypatch.setattr(Accelerator, "prepare", replacing)
    distill(run)
    found = weights(run.output)
    assert any(not torch.equal(found[name], value) for name, value in initial(run).items())
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_a_sharded_average_is_the_closed_form_of_one_process_and_resumes(recipe, tmp_path, monkeypatch):
    expected = in_closed_form(recipe("plain", stages=one_epoch()), monkeypatch)
    whole = recipe("whole", ema_decay=DECAY, stages=one_epoch())
    launch(whole, tmp_path, processes=2, sharded=True)
    found = weights(whole.output)
    assert any(not torch.equal(found[name], value) for name, value in initial(whole).items())
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=2e-3, rtol=2e-2)
    killed = recipe("killed", ema_decay=DECAY, stages=one_epoch(), checkpoint_minutes=1e-9)
    launch(killed, tmp_path, processes=2, sharded=True, until=2)
    assert (killed.output / "checkpoints" / "step-00000002" / "average.safetensors").is_file()
    launch(killed, tmp_path, processes=2, sharded=True)
    assert same(weights(whole.output), weights(killed.output))
