"""Weights against hand-computed cases."""

import math

import pytest
import torch

from workbench.errors import UserError
from workbench.weighting import TeacherStatistics, build_weighting, known_weightings, parse_settings

LOSSES = (0.5, 1.0, 1.5, 5.0)  # mean 2.0, median 1.25
X = torch.tensor(LOSSES)
IDS = ["a", "b", "c", "d"]


def weigh(options, progress, x=X):
    weighting = build_weighting(options, TeacherStatistics(LOSSES))
    return weighting(IDS[: len(x)], torch.rand(len(x)), torch.rand(len(x)), x, progress)


@pytest.mark.parametrize(("progress", "k"), [(0.0, 3.0), (0.25, 2.0), (0.75, 0.0), (1.0, -1.0)])
def test_adakd_is_the_closed_form(progress, k):
    weights = weigh({"name": "adakd", "k0": 3.0, "k1": -1.0, "difficulty_scale": "raw"}, progress)
    for alpha, x in zip(weights.distillation.tolist(), LOSSES, strict=True):
        d = math.exp(-k * (x - 2.0))
        assert alpha == pytest.approx(math.exp(-1 / math.sqrt(d)), abs=1e-6)
    torch.testing.assert_close(weights.task, 1 - weights.distillation)


def test_adakd_by_hand():
    # x - t = -1, k = 2: exp(-exp(-1)) = 0.6922; x - t = 3, k = 2: exp(-exp(3)) = 1.9e-9
    weights = weigh({"name": "adakd", "k0": 2.0, "k1": 2.0, "difficulty_scale": "raw"}, 0.0)
    assert weights.distillation[1].item() == pytest.approx(0.692201, abs=1e-6)
    assert weights.distillation[3].item() == pytest.approx(0.0, abs=1e-6)


def test_adakd_with_k_zero_is_the_fixed_weight_1_over_e():
    weights = weigh({"name": "adakd", "k0": 0.0, "k1": 0.0}, 0.4)
    fixed = weigh({"name": "fixed", "alpha": math.exp(-1)}, 0.4)
    torch.testing.assert_close(weights.distillation, fixed.distillation, atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.task, fixed.task, atol=1e-6, rtol=0)


def test_adakd_reverses_the_order_of_easy_and_hard():
    options = {"name": "adakd", "k0": 2.0, "k1": -1.0}
    early, late = weigh(options, 0.0).distillation, weigh(options, 1.0).distillation
    assert (early.diff() < 0).all()
    assert (late.diff() > 0).all()


@pytest.mark.parametrize(("threshold", "t"), [("mean", 2.0), ("median", 1.25), ("p25", 0.875), ("p75", 2.375)])
def test_adakd_threshold(threshold, t):
    options = {"name": "adakd", "threshold": threshold, "difficulty_scale": "raw"}
    assert weigh(options, 0.0, torch.tensor([t])).distillation.item() == pytest.approx(math.exp(-1), abs=1e-6)


def test_adakd_std_scale_does_not_depend_on_the_loss_scale():
    options = {"name": "adakd", "k0": 1.5, "k1": 1.5}
    found = weigh(options, 0.0).distillation
    scaled = build_weighting(options, TeacherStatistics(tuple(10 * x for x in LOSSES)))
    torch.testing.assert_close(scaled(IDS, X, X, 10 * X, 0.0).distillation, found)


def test_adakd_stays_finite_at_extreme_losses():
    weights = weigh({"name": "adakd", "k0": 1000.0, "k1": 1000.0, "difficulty_scale": "raw"}, 0.0)
    assert weights.distillation.isfinite().all()
    assert weights.distillation[0] == 1.0
    assert weights.distillation[3] == 0.0


def test_the_loss_with_all_weights_equal_is_fixed_alpha():
    task, distillation = torch.rand(4), torch.rand(4)
    adaptive = weigh({"name": "adakd", "k0": 0.0, "k1": 0.0}, 0.0)
    loss = (adaptive.task * task + adaptive.distillation * distillation).mean()
    alpha = math.exp(-1)
    assert loss.item() == pytest.approx(((1 - alpha) * task + alpha * distillation).mean().item(), abs=1e-6)


def test_fixed_takes_both_factors_by_name():
    weights = weigh({"name": "fixed", "task": 1.0, "distillation": 0.8}, 0.5)
    assert weights.task.tolist() == [1.0] * 4
    assert weights.distillation.tolist() == pytest.approx([0.8] * 4)


def test_systems_are_found_by_their_files():
    assert {"fixed", "adakd"} <= set(known_weightings())
    assert "protocol" not in known_weightings()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "adakb"}, "did you mean 'adakd'?"),
        ({"name": "adakd", "treshold": "mean"}, "did you mean 'threshold'?"),
        ({"name": "adakd", "threshold": "mode"}, "threshold"),
        ({"name": "fixed", "alpha": 2}, "alpha is 2"),
    ],
)
def test_wrong_options_are_named(options, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        parse_settings(options)
