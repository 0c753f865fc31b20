"""Learnt weights: factorised gradients against autograd through the look-ahead step."""

import json
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from workbench.losses.objectives import per_utterance
from workbench.weighting import TeacherStatistics, WeightingInput, build_weighting
from workbench.weighting.meta_batches import TrainBatch, ValidationBatch
from workbench.weighting.meta_gradients import (
    label_shares,
    normalized,
    outer_gradients,
    restrict_to_moved_tokens,
    weight_gradients,
)

WIDTH, VOCABULARY = 6, 11


@pytest.fixture
def scene():
    """Three training and two validation utterances before a projection, and two teachers."""
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH)
    utterance_index, held_owner = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1])
    hidden, held_hidden = torch.randn(6, WIDTH), torch.randn(3, WIDTH)
    labels, held_labels = torch.randint(VOCABULARY, (6,)), torch.randint(VOCABULARY, (3,))
    teachers = torch.randn(2, 6, VOCABULARY).softmax(-1)
    return weight, hidden, utterance_index, labels, teachers, held_hidden, held_owner, held_labels


def token_losses(logits, labels, teachers):
    log_q = logits.log_softmax(-1)
    kl = [(p * (p.log() - log_q)).sum(-1) for p in teachers]
    return torch.stack([F.cross_entropy(logits, labels, reduction="none"), *kl])  # [losses, labels]


def probed(scene, average_over="utterances"):
    weight, hidden, utterance_index, labels, teachers, held_hidden, held_owner, held_labels = scene
    logits = (hidden @ weight.t()).requires_grad_()
    losses = token_losses(logits, labels, teachers)
    residuals = torch.stack([torch.autograd.grad(row.sum(), logits, retain_graph=True)[0] for row in losses])
    held = ValidationBatch(
        held_hidden, held_hidden @ weight.t(), held_labels, label_shares(held_owner, 2, average_over)
    )
    share = label_shares(utterance_index, 3, average_over)
    return TrainBatch(["a", "b", "c"], hidden, residuals, utterance_index, logits.detach(), labels, share), [held]


def averaged(losses, utterance_index, average_over):
    """As training averages the losses of labels."""
    utterances = int(utterance_index.max()) + 1
    return losses.mean() if average_over == "tokens" else per_utterance(losses, utterance_index, utterances).mean()


def after_the_step(scene, weights, rate, average_over="utterances", train_share=0.0, create_graph=True):
    """The outer loss after one gradient step of the projection on the weighed losses, by autograd."""
    weight, hidden, utterance_index, labels, teachers, held_hidden, held_owner, held_labels = scene
    theta = weight.clone().requires_grad_()
    losses = (weights[:, utterance_index] * token_losses(hidden @ theta.t(), labels, teachers[: len(weights) - 1])).sum(
        0
    )
    (step,) = torch.autograd.grad(averaged(losses, utterance_index, average_over), theta, create_graph=create_graph)
    ahead = theta - rate * step
    validation = F.cross_entropy(held_hidden @ ahead.t(), held_labels, reduction="none")
    train = F.cross_entropy(hidden @ ahead.t(), labels, reduction="none")
    return (1 - train_share) * averaged(validation, held_owner, average_over) + train_share * averaged(
        train, utterance_index, average_over
    )


@pytest.mark.parametrize("average_over", ["utterances", "tokens"])
@pytest.mark.parametrize("train_share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("rate", [1e-4, 0.1, 2.0])
def test_gradients_are_autograds_through_the_look_ahead(scene, rate, train_share, average_over):
    weights = torch.rand(3, 3, requires_grad=True)  # [losses, utterances]
    (expected,) = torch.autograd.grad(after_the_step(scene, weights, rate, average_over, train_share), weights)
    found = outer_gradients(*probed(scene, average_over), weights.detach(), rate, train_share)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("average_over", ["utterances", "tokens"])
def test_shares_of_labels_are_training_s_own_mean(average_over):
    utterance_index, losses = torch.tensor([0, 0, 0, 1]), torch.tensor([1.0, 2.0, 3.0, 10.0])
    shares = label_shares(utterance_index, 2, average_over)
    assert (shares * losses).sum().item() == pytest.approx({"utterances": 6.0, "tokens": 4.0}[average_over])


def test_the_whole_validation_set_in_parts_is_the_whole_set(scene):
    batch, (held,) = probed(scene)
    parts = [
        ValidationBatch(*(x[rows] for x in (held.hidden, held.logits, held.labels, held.weight)))
        for rows in ([0], [1, 2])
    ]
    weights = torch.rand(3, 3)
    torch.testing.assert_close(
        outer_gradients(batch, parts, weights, 0.3, 0.25), outer_gradients(batch, [held], weights, 0.3, 0.25)
    )


def test_almkd_as_its_authors_run_it(scene):
    """Ten repeats of a - 2000 * learning rate * d [0.75 validation + 0.25 train] / da, raw, against autograd."""
    example = Path("docs/weightings.md").read_text(encoding="utf-8").split("as its authors run it\n", 1)[1]
    documented = yaml.safe_load(textwrap.dedent(example.split("These values", 1)[0].split("The training part", 1)[0]))
    learning_rate, batch_and_outer = 0.02, probed(scene)
    batch = replace(batch_and_outer[0], residuals=batch_and_outer[0].residuals[:2])
    options = {
        "name": "almkd", "start_epoch": 0, "update_every": 10, "steps_per_update": 10, "weight_learning_rate_factor": 2000, "inner_learning_rate": "current",
        "gradient_scale": "raw", "train_loss_weight": 0.25, "validation": "whole", "update_on_learning_rate_change": True, "min_alpha": 1e-7,
        "initial_alpha": 0.4,
    }  # fmt: skip
    assert documented["weighting"] == {key: value for key, value in options.items() if key != "initial_alpha"}
    system = build_weighting(options, TeacherStatistics((1.0,)))
    assert system.whole_validation
    start = torch.tensor([system.initial(i, 2) for i in "abc"]).t()
    alpha, inside = torch.full((3,), 0.4), 0
    for _ in range(10):
        a = alpha.clone().requires_grad_()
        outer = after_the_step(scene, torch.stack([1 - a, a]), learning_rate, "utterances", 0.25)
        (slope,) = torch.autograd.grad(outer, a)
        alpha = (alpha - 2000 * learning_rate * slope).clamp(1e-7, 1 - 1e-7)
        inside += int(((alpha > 1e-6) & (alpha < 1 - 1e-6)).sum())
    assert 0 < inside < 30  # some weights are moved, some end at the bounds
    found = system.updated_weights(batch, batch_and_outer[1], start, learning_rate)
    torch.testing.assert_close(found, torch.stack([1 - alpha, alpha]), rtol=1e-3, atol=1e-5)
    assert found.min() >= 0.9e-7


def test_almkd_learns_at_its_intervals_and_where_the_learning_rate_has_changed(scene):
    class MetaBatches:
        learning_rate = 0.1

        def pairs(self, whole):
            assert whole
            yield probed(scene)

        def gather_dict(self, found):
            return found

    options = {
        "name": "almkd",
        "start_epoch": 0,
        "update_every": 10,
        "update_on_learning_rate_change": True,
        "validation": "whole",
    }
    system = build_weighting(options, TeacherStatistics((1.0,)))
    assert system.should_look_ahead(0, 0.1)
    system.look_ahead(MetaBatches())
    resumed = build_weighting(options, TeacherStatistics((1.0,)))
    resumed.load_state_dict(json.loads(json.dumps(system.state_dict())))
    for one in (system, resumed):
        assert [epoch for epoch in range(1, 21) if one.should_look_ahead(epoch, 0.1)] == [10, 20]
        assert one.should_look_ahead(3, 0.05)


def test_the_first_weights_of_almkd_depend_on_seed_and_utterance_alone():
    first, again, other = (build_weighting({"name": "almkd"}, TeacherStatistics((1.0,)), seed) for seed in (1, 1, 2))
    names = [f"clip-{i}" for i in range(1000)]
    drawn = torch.tensor([first.initial(name, 2)[1] for name in names], dtype=torch.float64)
    assert drawn.tolist() == [again.initial(name, 2)[1] for name in names]
    others = torch.tensor([other.initial(name, 2)[1] for name in names], dtype=torch.float64)
    assert torch.corrcoef(torch.stack([drawn, others]))[0, 1].abs() < 0.1  # another seed, other weights
    for weights in (drawn, others):  # uniform: mean 1/2, variance 1/12
        assert weights.mean().item() == pytest.approx(0.5, abs=0.05)
        assert weights.var().item() == pytest.approx(1 / 12, abs=0.01)


def test_tokens_that_the_step_does_not_move_go_together():
    torch.manual_seed(1)
    weight = torch.cat([torch.randn(9, WIDTH) * 2, torch.randn(300, WIDTH) * 0.1])
    bias = torch.cat([torch.zeros(9), torch.full((300,), -14.0)])  # hardly ever likely
    hidden, utterance_index = torch.randn(6, WIDTH), torch.tensor([0, 0, 1, 2, 2, 2])
    p = (hidden @ weight.t() + bias).softmax(-1)
    residuals = torch.stack([p - F.one_hot(torch.randint(9, (6,)), 309), p - p.roll(1, 0)])
    held_hidden = torch.randn(3, WIDTH)
    labels = torch.tensor([1, 4, 200])  # one of them is among the unlikely
    held = ValidationBatch(held_hidden, held_hidden @ weight.t() + bias, labels, torch.full((3,), 1 / 3))
    logits, targets = hidden @ weight.t() + bias, torch.randint(9, (6,))
    whole = TrainBatch(
        ["a", "b", "c"],
        hidden,
        residuals,
        utterance_index,
        logits,
        targets,
        label_shares(utterance_index, 3, "utterances"),
    )
    weights = torch.rand(2, 3)
    fewer, (held_fewer,) = restrict_to_moved_tokens(whole, [held])
    assert fewer.residuals.shape[-1] < 15
    torch.testing.assert_close(held_fewer.logits.logsumexp(-1), held.logits.logsumexp(-1))
    for train_share in (0.0, 0.25):
        torch.testing.assert_close(
            outer_gradients(fewer, [held_fewer], weights, 0.1, train_share),
            outer_gradients(whole, [held], weights, 0.1, train_share), rtol=1e-3, atol=1e-6,
        )  # fmt: skip


def test_where_every_token_moves_nothing_changes(scene):
    weights = torch.rand(3, 3)
    batch, outer = restrict_to_moved_tokens(*probed(scene))
    assert batch.residuals.shape[-1] == VOCABULARY + 1
    torch.testing.assert_close(
        outer_gradients(batch, outer, weights, 0.1), outer_gradients(*probed(scene), weights, 0.1)
    )


def validation_loss(scene, weights, rate):
    return after_the_step(scene, weights, rate, create_graph=False).item()


@pytest.mark.parametrize("name", ["almkd", "amal", "rw_kd"])
def test_learnt_weights_make_the_look_ahead_better(scene, name):
    options = {"name": name} | ({"inner_learning_rate": 0.5, "weight_learning_rate": 0.2} if name != "rw_kd" else {})
    system = build_weighting(options, TeacherStatistics((1.0,)))
    before = torch.tensor([system.initial(i, 3) for i in "abc"]).t()
    after = system.updated_weights(*probed(scene), before, 1e-4)
    assert after.shape == (3, 3)
    total = before.sum()  # RW-KD weighs more in all; what is compared is where the weight lies
    assert validation_loss(scene, after * total / after.sum(), 0.5) < validation_loss(scene, before, 0.5)


def test_almkd_is_convex_and_amal_within_its_bounds(scene):
    almkd = build_weighting(
        {"name": "almkd", "weight_learning_rate": 5.0, "steps_per_update": 3}, TeacherStatistics((1.0,))
    )
    start = torch.tensor([almkd.initial(i, 3) for i in "abc"]).t()
    torch.testing.assert_close(start.sum(0), torch.ones(3))
    found = almkd.updated_weights(*probed(scene), start, 1e-4)
    torch.testing.assert_close(found.sum(0), torch.ones(3))
    assert (found >= 0).all()
    amal = build_weighting({"name": "amal", "weight_learning_rate": 5.0}, TeacherStatistics((1.0,)))
    found = amal.updated_weights(*probed(scene), torch.tensor([amal.initial(i, 3) for i in "abc"]).t(), 1e-4)
    assert found.min() >= 1e-7 - 1e-9
    assert found.max() <= 2


def test_almkd_with_one_teacher_descends_along_a(scene):
    """One raw step by hand: a - step * (dCE/dw_KL - dCE/dw_CE)."""
    batch, (held,) = probed(scene)
    batch = replace(batch, residuals=batch.residuals[:2])
    options = {
        "name": "almkd",
        "steps_per_update": 1,
        "weight_learning_rate": 3.0,
        "inner_learning_rate": 0.3,
        "gradient_scale": "raw",
        "initial_alpha": 0.4,
    }
    system = build_weighting(options, TeacherStatistics((1.0,)))
    start = torch.tensor([system.initial(i, 2) for i in "abc"]).t()
    slopes = weight_gradients(batch, held, start, 0.3)
    expected = (0.4 - 3.0 * (slopes[1] - slopes[0])).clamp(0, 1)
    torch.testing.assert_close(
        system.updated_weights(batch, [held], start, 1e-4), torch.stack([1 - expected, expected])
    )


def test_rw_kd_is_the_clipped_and_normalised_descent_from_zero(scene):
    weight, hidden, utterance_index, labels, teachers, held_hidden, held_owner, held_labels = scene
    weights = torch.zeros(3, 3, requires_grad=True)
    theta = weight.clone().requires_grad_()
    each = torch.stack(
        [per_utterance(row, utterance_index, 3) for row in token_losses(hidden @ theta.t(), labels, teachers)]
    )
    (step,) = torch.autograd.grad((weights * each).sum(0).mean(), theta, create_graph=True)
    ahead = F.cross_entropy(held_hidden @ (theta - step).t(), held_labels, reduction="none")
    (slope,) = torch.autograd.grad(per_utterance(ahead, held_owner, 2).mean(), weights)
    helpful = (-slope).clamp(min=0)
    system = build_weighting({"name": "rw_kd"}, TeacherStatistics((1.0,)))
    start = torch.tensor([system.initial(i, 3) for i in "abc"]).t()
    torch.testing.assert_close(system.updated_weights(*probed(scene), start, 1e-4), helpful * 3 / helpful.sum())


def test_weights_belong_to_utterances_and_survive_a_checkpoint(scene):
    pair = probed(scene)

    class MetaBatches:
        learning_rate = 1e-4

        def pairs(self, whole):
            assert not whole
            yield pair

        def gather_dict(self, found):
            return {**found, "d": [0.2, 0.3, 0.5]}  # of another process

    system = build_weighting({"name": "amal", "start_epoch": 0}, TeacherStatistics((1.0,)))
    system.look_ahead(MetaBatches())
    other = build_weighting({"name": "amal"}, TeacherStatistics((1.0,)))
    other.load_state_dict(system.state_dict())
    zeros = torch.zeros(3)
    given = WeightingInput(
        ids=["d", "new", "b"],
        task=zeros,
        distillation=zeros,
        teacher_loss=zeros,
        progress=0.5,
        by_teacher=torch.zeros(2, 3),
    )
    weights = other(given)
    assert weights.distillation.shape == (2, 3)
    torch.testing.assert_close(weights.task[0], torch.tensor(0.2))
    torch.testing.assert_close(weights.distillation[:, 1], torch.tensor([0.45, 0.45]))
    assert weights.task[2].item() == pytest.approx(system.weights["b"][0])


def test_updates_come_first_at_their_epoch_and_then_at_intervals():
    system = build_weighting({"name": "almkd", "start_epoch": 2, "update_every": 3}, TeacherStatistics((1.0,)))
    assert [e for e in range(10) if system.should_look_ahead(e, 0.1 / (e + 1))] == [2, 5, 8]


def test_normalized_gradients_have_the_root_mean_square_1():
    gradient = torch.randn(2, 5)
    assert normalized(gradient, "rms").square().mean().item() == pytest.approx(1.0)
    assert normalized(gradient, "raw") is gradient


@pytest.mark.parametrize("average_over", ["utterances", "tokens"])
@pytest.mark.parametrize("rate", [1e-3, 0.3])
def test_of_ctc_they_are_autograds_too(rate, average_over):
    """Frames in place of labels: the task loss is the whole utterance's, and so is the outer one."""
    from functools import partial

    from workbench.losses.criterion import Ctc, Predictions

    torch.manual_seed(0)
    size, ctc = 5, Ctc(0)
    weight = torch.randn(size, WIDTH)
    index, held_index = torch.tensor([0, 0, 0, 1, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 1])
    texts, held_texts = torch.tensor([[1, 2], [3, -100]]), torch.tensor([[4, -100], [1, 1]])
    hidden, held_hidden = torch.randn(7, WIDTH), torch.randn(5, WIDTH)
    teacher = torch.randn(7, size).softmax(-1)
    counts, held_counts = ((t >= 0).sum(1) for t in (texts, held_texts))

    def mean(losses, owner, tokens):
        each = per_utterance(losses, owner, 2)
        return (each * tokens).sum() / tokens.sum() if average_over == "tokens" else each.mean()

    def ctc_of(logits, owner, transcripts):
        """The same losses by torch alone, which can be differentiated twice."""
        rows = torch.split(logits.log_softmax(-1), torch.bincount(owner).tolist())
        each = []
        for row, text in zip(rows, transcripts, strict=True):
            ids = text[text >= 0]
            paths = torch.cartesian_prod(*[torch.arange(size)] * len(row)).view(-1, len(row))
            fits = [p for p in paths if [v for v in p.unique_consecutive().tolist() if v] == ids.tolist()]
            found = torch.stack([row[torch.arange(len(row)), p].sum() for p in fits])
            each.append((-found.logsumexp(0) / len(ids)).expand(len(row)))
        return torch.cat(each)

    def losses_of(logits):
        kl = (teacher * (teacher.log() - logits.log_softmax(-1))).sum(-1)
        return torch.stack([ctc_of(logits, index, texts), kl])

    weights = torch.rand(2, 2, requires_grad=True)
    theta = weight.clone().requires_grad_()
    loss = mean((weights[:, index] * losses_of(hidden @ theta.t())).sum(0), index, counts)
    (step,) = torch.autograd.grad(loss, theta, create_graph=True)
    outer = mean(ctc_of(held_hidden @ (theta - rate * step).t(), held_index, held_texts), held_index, held_counts)
    (expected,) = torch.autograd.grad(outer, weights)

    def residual(predictions, logits):
        at = logits.detach().requires_grad_()
        return torch.autograd.grad(ctc.task(at, predictions).sum(), at)[0]

    logits = (hidden @ weight.t()).requires_grad_()
    own, held_own = (Predictions(t, torch.full_like(i, -1), i) for t, i in ((texts, index), (held_texts, held_index)))
    kl = torch.autograd.grad((teacher * (teacher.log() - logits.log_softmax(-1))).sum(), logits)[0]
    batch = TrainBatch(
        ["a", "b"], hidden, torch.stack([residual(own, logits), kl]), index, logits.detach(), own.labels,
        label_shares(index, 2, average_over, counts), partial(residual, own),
    )  # fmt: skip
    held = ValidationBatch(
        held_hidden, held_hidden @ weight.t(), held_own.labels,
        label_shares(held_index, 2, average_over, held_counts), partial(residual, held_own),
    )  # fmt: skip
    found = weight_gradients(*(restrict_to_moved_tokens(batch, [held])[0], held), weights.detach(), rate)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
