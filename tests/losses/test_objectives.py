"""Losses against torch's own, closed forms and autograd."""

import pytest
import torch
import torch.nn.functional as F

from workbench.losses.objectives import cross_entropy, forward_kl, forward_kl_top_k, per_utterance, state_mse


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(7, 50), 3 * torch.randn(7, 50)  # student, teacher


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_forward_kl_is_torchs_scaled_by_tau_squared(logits, temperature):
    student, teacher = logits
    log_q, log_p = (F.log_softmax(x / temperature, -1) for x in (student, teacher))
    expected = temperature**2 * F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(forward_kl(student, teacher, temperature), expected)


def top_k(teacher, k, temperature):
    values, ids = teacher.topk(k, -1)
    return ids, values, (teacher / temperature).logsumexp(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_of_the_whole_vocabulary_is_the_full_divergence_and_so_is_its_gradient(logits, temperature):
    student, teacher = (x.clone().requires_grad_() for x in logits)
    full = forward_kl(student, teacher.detach(), temperature)
    (expected,) = torch.autograd.grad(full.sum(), student)
    found = forward_kl_top_k(student, *top_k(teacher.detach(), 50, temperature), temperature)
    torch.testing.assert_close(found, full, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_top_k_merges_the_tail_into_one_bucket(logits):
    student, teacher = logits
    ids, values, normalizer = top_k(teacher, 3, 1.0)
    p, q = teacher.softmax(-1), student.softmax(-1)
    p3, q3 = p.gather(1, ids), q.gather(1, ids)
    expected = (p3 * (p3 / q3).log()).sum(1) + (1 - p3.sum(1)) * ((1 - p3.sum(1)) / (1 - q3.sum(1))).log()
    torch.testing.assert_close(forward_kl_top_k(student, ids, values, normalizer), expected, rtol=1e-4, atol=1e-5)
    assert (forward_kl_top_k(student, ids, values, normalizer) <= forward_kl(student, teacher) + 1e-5).all()


def test_top_k_is_zero_and_flat_where_the_student_is_the_teacher(logits):
    teacher = logits[1].clone().requires_grad_()
    loss = forward_kl_top_k(teacher, *top_k(teacher.detach(), 5, 1.0))
    assert loss.abs().max() < 1e-5
    (gradient,) = torch.autograd.grad(loss.sum(), teacher)
    assert gradient.abs().max() < 1e-5


def test_top_k_stays_finite_for_a_student_that_is_certain(logits):
    student = 1000 * logits[0]
    assert forward_kl_top_k(student, *top_k(logits[1], 5, 1.0)).isfinite().all()


def test_per_utterance_averages_within_each_utterance():
    values, utterance_index = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([0, 0, 2, 2])
    assert per_utterance(values, utterance_index, 3).tolist() == [2.0, 0.0, 6.0]


def test_cross_entropy_in_bf16_is_computed_in_fp32(logits):
    labels = torch.arange(7)
    found = cross_entropy(logits[0].bfloat16(), labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.cross_entropy(logits[0].bfloat16().float(), labels, reduction="none"))


def test_state_mse_ignores_scale_and_padding():
    torch.manual_seed(0)
    teacher = torch.randn(2, 6, 8)
    frames = torch.tensor([6, 3])
    student = torch.cat([2 * teacher + 1, torch.randn(2, 2, 8)], 1)  # positions that the teacher does not have
    student[1, 3:] = 100.0
    assert state_mse(student, teacher, frames).max() < 1e-6
    other = torch.randn(2, 6, 8)
    expected = (F.layer_norm(other[1, :3], (8,)) - F.layer_norm(teacher[1, :3], (8,))).square().mean()
    torch.testing.assert_close(state_mse(other, teacher, frames)[1], expected)
