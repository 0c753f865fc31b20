"""Learnt weights: factorised gradients against autograd through the look-ahead step."""

import pytest
import torch
import torch.nn.functional as F

from workbench.look_ahead import Held, Probed, concentrated, normalized, weight_gradients
from workbench.objectives import per_utterance
from workbench.weighting import Evidence, TeacherStatistics, build_weighting

WIDTH, VOCABULARY = 6, 11


@pytest.fixture
def scene():
    """Three training and two validation utterances before a projection, and two teachers."""
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH)
    owner, held_owner = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1])
    hidden, held_hidden = torch.randn(6, WIDTH), torch.randn(3, WIDTH)
    labels, held_labels = torch.randint(VOCABULARY, (6,)), torch.randint(VOCABULARY, (3,))
    teachers = torch.randn(2, 6, VOCABULARY).softmax(-1)
    return weight, hidden, owner, labels, teachers, held_hidden, held_owner, held_labels


def token_losses(logits, labels, teachers):
    log_q = logits.log_softmax(-1)
    kl = [(p * (p.log() - log_q)).sum(-1) for p in teachers]
    return torch.stack([F.cross_entropy(logits, labels, reduction="none"), *kl])  # [losses, labels]


def probed(scene):
    weight, hidden, owner, labels, teachers, held_hidden, held_owner, held_labels = scene
    logits = (hidden @ weight.t()).requires_grad_()
    losses = token_losses(logits, labels, teachers)
    residuals = torch.stack([torch.autograd.grad(row.sum(), logits, retain_graph=True)[0] for row in losses])
    counts = torch.bincount(held_owner)
    held = Held(held_hidden, held_hidden @ weight.t(), held_labels, 1.0 / (counts[held_owner] * len(counts)))
    return Probed(["a", "b", "c"], hidden, residuals, owner), held


@pytest.mark.parametrize("rate", [1e-4, 0.1, 2.0])
def test_gradients_are_autograds_through_the_look_ahead(scene, rate):
    weight, hidden, owner, labels, teachers, held_hidden, held_owner, held_labels = scene
    weights = torch.rand(3, 3, requires_grad=True)  # [losses, utterances]
    theta = weight.clone().requires_grad_()
    losses = token_losses(hidden @ theta.t(), labels, teachers)
    each = torch.stack([per_utterance(row, owner, 3) for row in losses])
    (step,) = torch.autograd.grad((weights * each).sum(0).mean(), theta, create_graph=True)
    ahead = held_hidden @ (theta - rate * step).t()
    validation = per_utterance(F.cross_entropy(ahead, held_labels, reduction="none"), held_owner, 2).mean()
    (expected,) = torch.autograd.grad(validation, weights)
    found = weight_gradients(*probed(scene), weights.detach(), rate)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_tokens_that_the_step_does_not_move_go_together():
    torch.manual_seed(1)
    weight = torch.cat([torch.randn(9, WIDTH) * 2, torch.randn(300, WIDTH) * 0.1])
    bias = torch.cat([torch.zeros(9), torch.full((300,), -14.0)])  # hardly ever likely
    hidden, owner = torch.randn(6, WIDTH), torch.tensor([0, 0, 1, 2, 2, 2])
    p = (hidden @ weight.t() + bias).softmax(-1)
    residuals = torch.stack([p - F.one_hot(torch.randint(9, (6,)), 309), p - p.roll(1, 0)])
    held_hidden = torch.randn(3, WIDTH)
    labels = torch.tensor([1, 4, 200])  # one of them is among the unlikely
    held = Held(held_hidden, held_hidden @ weight.t() + bias, labels, torch.full((3,), 1 / 3))
    whole, weights = Probed(["a", "b", "c"], hidden, residuals, owner), torch.rand(2, 3)
    fewer, held_fewer = concentrated(whole, held)
    assert fewer.residuals.shape[-1] < 15
    torch.testing.assert_close(held_fewer.logits.logsumexp(-1), held.logits.logsumexp(-1))
    torch.testing.assert_close(
        weight_gradients(fewer, held_fewer, weights, 0.1), weight_gradients(whole, held, weights, 0.1), rtol=1e-3, atol=1e-6
    )  # fmt: skip


def test_where_every_token_moves_nothing_changes(scene):
    weights = torch.rand(3, 3)
    batch, held = concentrated(*probed(scene))
    assert batch.residuals.shape[-1] == VOCABULARY + 1
    torch.testing.assert_close(
        weight_gradients(batch, held, weights, 0.1), weight_gradients(*probed(scene), weights, 0.1)
    )


def validation_loss(scene, weights, rate):
    weight, hidden, owner, labels, teachers, held_hidden, held_owner, held_labels = scene
    theta = weight.clone().requires_grad_()
    losses = token_losses(hidden @ theta.t(), labels, teachers)
    each = torch.stack([per_utterance(row, owner, 3) for row in losses])
    (step,) = torch.autograd.grad((weights * each).sum(0).mean(), theta)
    ahead = held_hidden @ (theta.detach() - rate * step).t()
    return per_utterance(F.cross_entropy(ahead, held_labels, reduction="none"), held_owner, 2).mean().item()


@pytest.mark.parametrize("name", ["almkd", "amal", "rw_kd"])
def test_learnt_weights_make_the_look_ahead_better(scene, name):
    options = {"name": name} | ({"rate": 0.5, "step": 0.2} if name != "rw_kd" else {})
    system = build_weighting(options, TeacherStatistics((1.0,)))
    before = torch.tensor([system.initial(i, 3) for i in "abc"]).t()
    after = system.improved(*probed(scene), before)
    assert after.shape == (3, 3)
    total = before.sum()  # RW-KD weighs more in all; what is compared is where the weight lies
    assert validation_loss(scene, after * total / after.sum(), 0.5) < validation_loss(scene, before, 0.5)


def test_almkd_is_convex_and_amal_within_its_bounds(scene):
    almkd = build_weighting({"name": "almkd", "step": 5.0, "repeats": 3}, TeacherStatistics((1.0,)))
    start = torch.tensor([almkd.initial(i, 3) for i in "abc"]).t()
    torch.testing.assert_close(start.sum(0), torch.ones(3))
    found = almkd.improved(*probed(scene), start)
    torch.testing.assert_close(found.sum(0), torch.ones(3))
    assert (found >= 0).all()
    amal = build_weighting({"name": "amal", "step": 5.0}, TeacherStatistics((1.0,)))
    found = amal.improved(*probed(scene), torch.tensor([amal.initial(i, 3) for i in "abc"]).t())
    assert found.min() >= 1e-7 - 1e-9
    assert found.max() <= 2


def test_almkd_with_one_teacher_descends_along_a(scene):
    """One raw step by hand: a - step * (dCE/dw_KL - dCE/dw_CE)."""
    batch, held = probed(scene)
    batch = Probed(batch.ids, batch.hidden, batch.residuals[:2], batch.owner)
    options = {"name": "almkd", "repeats": 1, "step": 3.0, "rate": 0.3, "gradient_scale": "raw", "initial": 0.4}
    system = build_weighting(options, TeacherStatistics((1.0,)))
    start = torch.tensor([system.initial(i, 2) for i in "abc"]).t()
    slopes = weight_gradients(batch, held, start, 0.3)
    expected = (0.4 - 3.0 * (slopes[1] - slopes[0])).clamp(0, 1)
    torch.testing.assert_close(system.improved(batch, held, start), torch.stack([1 - expected, expected]))


def test_rw_kd_is_the_clipped_and_normalised_descent_from_zero(scene):
    weight, hidden, owner, labels, teachers, held_hidden, held_owner, held_labels = scene
    weights = torch.zeros(3, 3, requires_grad=True)
    theta = weight.clone().requires_grad_()
    each = torch.stack([per_utterance(row, owner, 3) for row in token_losses(hidden @ theta.t(), labels, teachers)])
    (step,) = torch.autograd.grad((weights * each).sum(0).mean(), theta, create_graph=True)
    ahead = F.cross_entropy(held_hidden @ (theta - step).t(), held_labels, reduction="none")
    (slope,) = torch.autograd.grad(per_utterance(ahead, held_owner, 2).mean(), weights)
    helpful = (-slope).clamp(min=0)
    system = build_weighting({"name": "rw_kd"}, TeacherStatistics((1.0,)))
    start = torch.tensor([system.initial(i, 3) for i in "abc"]).t()
    torch.testing.assert_close(system.improved(*probed(scene), start), helpful * 3 / helpful.sum())


def test_weights_belong_to_utterances_and_survive_a_checkpoint(scene):
    pair = probed(scene)

    class Probe:
        def pairs(self):
            yield pair

        def gathered(self, found):
            return {**found, "d": [0.2, 0.3, 0.5]}  # of another process

    system = build_weighting({"name": "amal", "first": 0}, TeacherStatistics((1.0,)))
    system.look_ahead(Probe())
    other = build_weighting({"name": "amal"}, TeacherStatistics((1.0,)))
    other.load_state_dict(system.state_dict())
    zeros = torch.zeros(3)
    given = Evidence(["d", "new", "b"], zeros, zeros, zeros, 0.5, by_teacher=torch.zeros(2, 3))
    weights = other(given)
    assert weights.distillation.shape == (2, 3)
    torch.testing.assert_close(weights.task[0], torch.tensor(0.2))
    torch.testing.assert_close(weights.distillation[:, 1], torch.tensor([0.45, 0.45]))
    assert weights.task[2].item() == pytest.approx(system.weights["b"][0])


def test_updates_come_first_at_their_epoch_and_then_at_intervals():
    system = build_weighting({"name": "almkd", "first": 2, "every": 3}, TeacherStatistics((1.0,)))
    assert [e for e in range(10) if system.looks_ahead(e)] == [2, 5, 8]


def test_normalized_gradients_have_the_root_mean_square_1():
    gradient = torch.randn(2, 5)
    assert normalized(gradient, "rms").square().mean().item() == pytest.approx(1.0)
    assert normalized(gradient, "raw") is gradient
