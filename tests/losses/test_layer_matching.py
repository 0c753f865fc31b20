"""Distances between decoder layers against closed forms, torch's own KL divergence and autograd."""

import pytest
import torch
import torch.nn.functional as F

from workbench.losses.layer_matching import attention_loss, hidden_state_loss


def log_shares(*shape, seed=0):
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def everywhere(student):
    return torch.ones(student.shape[1], student.shape[-1], dtype=torch.bool)


def test_hidden_states_are_compared_after_normalisation():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    unit = [(x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0) for x in (student, teacher)]
    expected = ((unit[0] - unit[1]) ** 2).sum((0, 2)) / 16  # [labels]: of two layers of width 8
    torch.testing.assert_close(hidden_state_loss(student, teacher), expected, atol=1e-4, rtol=1e-4)
    assert hidden_state_loss(3 * teacher + 1, teacher).max() < 1e-6


def test_attention_is_torchs_kl_divergence_over_heads_and_layers():
    student, teacher = log_shares(2, 3, 4, 6), log_shares(2, 3, 4, 6, seed=1)
    expected = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1).mean((0, 2))
    torch.testing.assert_close(attention_loss(student, teacher, everywhere(student)), expected)


def test_a_teacher_that_attends_beyond_the_clip_is_renormalised_within_it():
    student, teacher = log_shares(1, 2, 2, 5), log_shares(1, 2, 2, 9, seed=1)
    mask = torch.arange(5)[None] < torch.tensor([[5], [3]])
    student = student.masked_fill(~mask[:, None], -torch.inf).log_softmax(-1).requires_grad_()
    found = attention_loss(student, teacher, mask)
    for label, length in enumerate((5, 3)):
        p = teacher[0, label, :, :length].softmax(-1)  # renormalised over what the clip has
        expected = (p * (p.log() - student[0, label, :, :length])).sum(-1).mean()
        torch.testing.assert_close(found[label], expected)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert gradient.isfinite().all()


def test_the_teachers_positions_are_summed_where_the_student_pools():
    fine = log_shares(1, 2, 2, 7, seed=1)
    halves = F.pad(fine.exp(), (0, 1)).view(1, 2, 2, 4, 2).sum(-1)
    student = log_shares(1, 2, 2, 4)
    found = attention_loss(student, fine, everywhere(student), pooling=2)
    torch.testing.assert_close(found, attention_loss(student, halves.log(), everywhere(student)))
    assert attention_loss(halves.log(), fine, everywhere(student), pooling=2).abs().max() < 1e-6


def test_other_numbers_of_heads_are_compared_by_their_means():
    student, teacher = log_shares(1, 3, 2, 6), log_shares(1, 3, 4, 6, seed=1)
    p, q = teacher.exp().mean(2), student.exp().mean(2)
    expected = (p * (p / q).log()).sum(-1)[0]
    torch.testing.assert_close(attention_loss(student, teacher, everywhere(student)), expected)
    padded = F.pad(student, (0, 2), value=-torch.inf).requires_grad_()
    found = attention_loss(padded, F.pad(teacher, (0, 2), value=-torch.inf), F.pad(everywhere(student), (0, 2)))
    torch.testing.assert_close(found, expected)
    assert torch.autograd.grad(found.sum(), padded)[0].isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_with_respect_to_the_scores_is_q_minus_p(seed):
    scores, teacher = torch.randn(1, 1, 1, 6, requires_grad=True), log_shares(1, 1, 1, 6, seed=seed)
    loss = attention_loss(scores.log_softmax(-1), teacher, everywhere(teacher)).sum()
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(gradient, scores.softmax(-1) - teacher.exp(), atol=1e-6, rtol=1e-5)
