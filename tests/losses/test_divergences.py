"""Divergences against their definitions, their limits, and the full vocabulary."""

import pytest
import torch
import torch.nn.functional as F

from workbench.config.sections import DivergenceRecipe
from workbench.losses.divergences import SoftTargets, distillation, task_and_distillation_losses
from workbench.losses.objectives import forward_kl

NAMES = ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(7, 50), 3 * torch.randn(7, 50)  # student, teacher


def top_k(teacher, k, temperature=1.0):
    values, ids = teacher.topk(k, -1)
    return SoftTargets(ids, values, (teacher / temperature).logsumexp(-1))


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_definitions(logits, temperature):
    q, p = ((x / temperature).softmax(-1) for x in logits)
    m = 0.3 * p + 0.7 * q
    expected = {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jsd": 0.3 * kl(p, m) + 0.7 * kl(q, m),
        "skew_kl": kl(p, 0.2 * p + 0.8 * q),
        "skew_reverse_kl": kl(q, 0.2 * q + 0.8 * p),
    }
    targets = SoftTargets.full(logits[1], temperature)
    for name, value in expected.items():
        found = distillation(logits[0], targets, DivergenceRecipe(name=name, beta=0.3, alpha=0.2), temperature)
        torch.testing.assert_close(found, temperature**2 * value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_top_k_of_everything_is_the_full_one_and_fewer_a_lower_bound(logits, name):
    student, teacher = (x.clone().requires_grad_() for x in logits)
    divergence = DivergenceRecipe(name=name)
    full = distillation(student, SoftTargets.full(teacher, 1.0), divergence, 1.0)
    _, every = task_and_distillation_losses(
        student, torch.zeros(7, dtype=torch.long), top_k(teacher.detach(), 50), divergence, 1.0
    )
    torch.testing.assert_close(every, full, rtol=1e-3, atol=1e-4)
    gradients = [torch.autograd.grad(x.sum(), student)[0] for x in (every, full)]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)
    some = distillation(student, top_k(teacher.detach(), 5), divergence, 1.0)
    assert (some <= full + 1e-5).all()


@pytest.mark.parametrize("name", [*NAMES, "logit_mse"])
def test_it_is_zero_and_flat_where_the_student_is_the_teacher(logits, name):
    student = logits[1].clone().requires_grad_()
    for targets in (SoftTargets.full(logits[1], 1.0), top_k(logits[1], 5)):
        loss = distillation(student, targets, DivergenceRecipe(name=name), 1.0)
        assert loss.abs().max() < 1e-5
        assert torch.autograd.grad(loss.sum(), student)[0].abs().max() < 1e-5


def test_the_skew_divergences_tend_to_the_plain_ones_and_jsd_at_a_half_is_symmetric(logits):
    student, teacher = logits
    targets = SoftTargets.full(teacher, 1.0)
    for skew, plain in (("skew_kl", "forward_kl"), ("skew_reverse_kl", "reverse_kl")):
        found = distillation(student, targets, DivergenceRecipe(name=skew, alpha=0.0), 1.0)
        torch.testing.assert_close(found, distillation(student, targets, DivergenceRecipe(name=plain), 1.0))
    jsd = DivergenceRecipe(name="jsd", beta=0.5)
    swapped = distillation(teacher, SoftTargets.full(student, 1.0), jsd, 1.0)
    torch.testing.assert_close(distillation(student, targets, jsd, 1.0), swapped)


def test_logit_mse_scales_the_teachers_logits_and_bounds_the_rest(logits):
    student, teacher = logits
    targets = top_k(teacher, 3)
    divergence = DivergenceRecipe(name="logit_mse", teacher_scale=0.5)
    whole = (student - 0.5 * teacher).square()
    torch.testing.assert_close(distillation(student, SoftTargets.full(teacher, 1.0), divergence, 1.0), whole.mean(1))
    found = distillation(student, targets, divergence, 1.0)
    inside = (student.gather(1, targets.ids) - 0.5 * targets.logits).square().sum(1)
    others = student.scatter(1, targets.ids, -torch.inf)
    over = (others - 0.5 * targets.logits[:, -1:]).clamp(min=0).square().sum(1)
    torch.testing.assert_close(found, (inside + over) / 3)
    assert (3 * found <= whole.sum(1) + 1e-4).all()
    everything = distillation(student, top_k(teacher, 50), divergence, 1.0)
    torch.testing.assert_close(everything, whole.mean(1), rtol=1e-4, atol=1e-4)


def test_the_fast_path_is_the_general_one(logits):
    student, teacher = logits
    labels = torch.arange(7)
    task, fast = task_and_distillation_losses(student, labels, top_k(teacher, 50), DivergenceRecipe(), 1.0)
    torch.testing.assert_close(fast, forward_kl(student, teacher), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(task, F.cross_entropy(student, labels, reduction="none"))


@pytest.mark.parametrize("name", NAMES)
def test_it_stays_finite_for_the_certain(logits, name):
    student = (1000 * logits[0]).requires_grad_()
    for targets in (SoftTargets.full(1000 * logits[1], 1.0), top_k(1000 * logits[1], 5)):
        loss = distillation(student, targets, DivergenceRecipe(name=name), 1.0)
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("name", [*NAMES[1:], "logit_mse"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_matched_gradients_are_as_large_as_forward_kls_and_point_where_their_own_do(logits, name, temperature):
    student = logits[0].clone().requires_grad_()
    targets = top_k(logits[1], 20, temperature)

    def gradient(divergence):
        return torch.autograd.grad(distillation(student, targets, divergence, temperature).sum(), student)[0]

    kl_gradient, plain = gradient(DivergenceRecipe()), gradient(DivergenceRecipe(name=name))
    matched = gradient(DivergenceRecipe(name=name, match_gradient=True))
    assert matched.norm().item() == pytest.approx(kl_gradient.norm().item(), rel=1e-4)
    cosine = F.cosine_similarity(matched.flatten(), plain.flatten(), 0)
    assert cosine.item() == pytest.approx(1.0, abs=1e-5)


def test_the_gradient_of_jsd_is_a_quarter_of_the_kls_near_agreement():
    torch.manual_seed(0)
    teacher = torch.randn(20, 50)
    student = (teacher + 0.01 * torch.randn(20, 50)).requires_grad_()
    norms = [
        torch.autograd.grad(
            distillation(student, SoftTargets.full(teacher, 1.0), DivergenceRecipe(name=name), 1.0).sum(), student
        )[0].norm()
        for name in ("jsd", "forward_kl")
    ]
    assert float(norms[0] / norms[1]) == pytest.approx(0.25, abs=0.01)
