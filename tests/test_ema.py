"""The moving average of the student's parameters, against its closed form."""

import pytest
import torch

from workbench.ema import MovingAverage


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
