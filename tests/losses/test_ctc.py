"""CTC against the sum over every alignment, its gradients against finite differences, and the weights of frames."""

import itertools

import pytest
import torch

from workbench.config.sections import DivergenceRecipe
from workbench.losses.criterion import CrossEntropy, Ctc, Predictions
from workbench.losses.ctc import aligned_tokens, blank_probability, ctc_losses, frame_weights, frames_needed
from workbench.losses.divergences import SampledTargets, SoftTargets
from workbench.losses.objectives import per_utterance
from workbench.losses.soft_targets import full_targets, sampled_targets, top_k_targets
from workbench.losses.token_losses import token_losses
from workbench.models.ctc.tokens import collapse

VOCABULARY = 4
TRANSCRIPTS = [[1, 2], [3, 3], [], [2]]
FRAMES = [4, 5, 3, 1]


def batch(blank=0, transcripts=TRANSCRIPTS, frames=FRAMES):
    torch.manual_seed(0)
    width = max(map(len, transcripts))
    tokens = torch.tensor([[*row, *[-100] * (width - len(row))] for row in transcripts])
    tokens = torch.where(tokens == blank, 0, tokens) if blank else tokens
    index = torch.repeat_interleave(torch.arange(len(frames)), torch.tensor(frames))
    return torch.randn(len(index), VOCABULARY, dtype=torch.float32) * 2, tokens, index


def every_alignment(log_p, transcript, blank):
    """Probability of a transcript and of each token at each frame given it, by trying all paths."""
    total, at = torch.zeros((), dtype=torch.float64), torch.zeros(log_p.shape, dtype=torch.float64)
    for path in itertools.product(range(log_p.shape[1]), repeat=len(log_p)):
        if collapse(torch.tensor(path), blank) == transcript:
            p = torch.stack([log_p[t, v] for t, v in enumerate(path)]).sum().double().exp()
            total = total + p
            for t, v in enumerate(path):
                at[t, v] += p
    return total, at / total


@pytest.mark.parametrize("blank", [0, 3])
def test_losses_are_those_of_all_alignments(blank):
    transcripts = [[v if v != blank else 0 for v in row] for row in TRANSCRIPTS]
    logits, tokens, index = batch(blank)
    losses = per_utterance(ctc_losses(logits, tokens, index, blank), index, len(tokens))
    aligned = torch.split(aligned_tokens(logits, tokens, index, blank), FRAMES)
    for i, rows in enumerate(torch.split(logits.log_softmax(-1), FRAMES)):
        total, at = every_alignment(rows, transcripts[i], blank)
        expected = -total.log() / max(len(transcripts[i]), 1)
        assert losses[i].item() == pytest.approx(expected.item(), abs=1e-5)
        assert torch.equal(aligned[i], at.argmax(-1))


def test_gradients_are_those_of_the_mean_over_utterances():
    logits, tokens, index = batch()
    factors = torch.tensor([0.3, 1.7, 0.5, 2.0])

    def loss(at):
        return (factors * per_utterance(ctc_losses(at, tokens, index, 0), index, len(tokens))).sum()

    leaf = logits.clone().requires_grad_()
    loss(leaf).backward()
    for f, v in itertools.product(range(len(logits)), range(VOCABULARY)):
        step = torch.zeros_like(logits)
        step[f, v] = 1e-2
        difference = (loss(logits + step) - loss(logits - step)) / 2e-2
        assert leaf.grad[f, v].item() == pytest.approx(difference.item(), abs=2e-3)


def test_a_frames_weight_scales_its_part_of_the_gradient():
    logits, tokens, index = batch()
    weights = torch.rand(len(index))
    plain, weighed = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    per_utterance(ctc_losses(plain, tokens, index, 0), index, 4).sum().backward()
    per_utterance(weights * ctc_losses(weighed, tokens, index, 0), index, 4).sum().backward()
    torch.testing.assert_close(weighed.grad, weights[:, None] * plain.grad)


def test_transcripts_that_do_not_fit_count_for_nothing():
    logits, tokens, index = batch(transcripts=[[1, 1], [1, 2, 3], [2]], frames=[2, 2, 2])
    assert frames_needed(tokens).tolist() == [3, 3, 1]
    leaf = logits.clone().requires_grad_()
    losses = ctc_losses(leaf, tokens, index, 0)
    losses.sum().backward()
    assert losses[:4].tolist() == [0.0] * 4
    assert bool((losses[4:] > 0).all())
    assert not leaf.grad[:4].any()
    assert bool(leaf.grad[4:].any())
    assert aligned_tokens(logits, tokens, index, 0)[:4].tolist() == [-1] * 4


def test_losses_are_fp32_whatever_the_logits_are():
    logits, tokens, index = batch()
    leaf = (logits * 30).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = ctc_losses(leaf, tokens, index, 0)
    losses.sum().backward()
    assert (losses.dtype, leaf.grad.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(losses, ctc_losses(leaf.detach().float(), tokens, index, 0))


def targets_of(kind, teacher, temperature):
    if kind == "sampled":
        ids, weights, entropy = sampled_targets(teacher, VOCABULARY, 8, temperature, 1)
        return SampledTargets(ids.long(), weights, entropy)
    if kind == "full":
        _, below, most = full_targets(teacher)
        return SoftTargets.full(below.float() + most[:, None], temperature)
    ids, values, normalizer = top_k_targets(teacher, VOCABULARY, temperature)
    return SoftTargets(ids.long(), values, normalizer)


@pytest.mark.parametrize("kind", ["top_k", "full", "sampled"])
@pytest.mark.parametrize("blank", [0, 2])
def test_frames_that_are_blank_to_both_count_less(kind, blank):
    logits, _, index = batch()
    teacher = torch.randn(len(index), VOCABULARY) * 2
    targets = targets_of(kind, teacher, 2.0)
    p, q = ((x / 2).softmax(-1)[:, blank] for x in (teacher, logits))
    torch.testing.assert_close(blank_probability(targets, 2.0, blank), p, atol=1e-3, rtol=1e-3)
    found = frame_weights(logits, targets, 2.0, index, blank, 0.2)
    raw = 1 - 0.8 * p * q
    torch.testing.assert_close(found, raw / per_utterance(raw, index, 4)[index], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(per_utterance(found, index, 4), torch.ones(4))
    alike = frame_weights(logits, targets, 2.0, index, blank, 1.0)
    torch.testing.assert_close(alike, torch.ones_like(alike))


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "logit_mse"])
def test_frames_without_targets_teach_nothing(name):
    logits, tokens, index = batch()
    teacher = torch.randn(len(index), VOCABULARY)
    taught = torch.ones(len(index), dtype=torch.bool)
    taught[[3, 7, 8, 12]] = False  # of the last utterance nothing is left
    divergence = DivergenceRecipe(name=name, match_gradient=name == "jsd")
    predictions, criterion = Predictions(tokens, torch.full_like(index, -1), index), Ctc(0)
    found = []
    for noise in (0.0, 5.0):  # what stands at the other frames does not matter
        other = torch.where(taught[:, None], teacher, teacher + noise)
        ids, values, normalizer = top_k_targets(other, VOCABULARY, 1.0)
        ids = torch.where(taught[:, None], ids.long(), -1)
        leaf = logits.clone().requires_grad_()
        by_frame = criterion.distillation(
            leaf, predictions, SoftTargets(ids, values, normalizer), divergence, 1.0, taught
        )
        by_frame.sum().backward()
        found.append((by_frame.detach(), leaf.grad))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
    by_frame, gradient = found[0]
    assert not by_frame[~taught].any()
    assert not gradient[~taught].any()
    assert bool(gradient[taught].any())
    alone = torch.tensor([0, 1, 2])  # the first utterance's mean is over its three frames that have targets
    weights = frame_weights(logits[alone], targets_of("top_k", teacher[alone], 1.0), 1.0, torch.zeros(3).long(), 0, 0.2)
    whole = criterion.distillation(
        logits[alone],
        Predictions(tokens[:1], torch.full((3,), -1), torch.zeros(3).long()),
        targets_of("top_k", teacher[alone], 1.0),
        divergence.model_copy(update={"match_gradient": False}),
        1.0,
    )
    assert weights.mean().item() == pytest.approx(1)
    if name != "jsd":  # whose factor is one for all utterances
        assert per_utterance(by_frame, index, 4)[0].item() == pytest.approx(whole.mean().item(), rel=1e-4)


def test_cross_entropy_is_as_it_was():
    logits, _, index = batch()
    labels, targets = torch.randint(0, VOCABULARY, (len(index),)), targets_of("top_k", torch.randn(len(index), 4), 1.0)
    predictions = Predictions(torch.empty(0), labels, index)
    found = CrossEntropy().task_and_distillation(logits, predictions, targets, DivergenceRecipe(), 1.0)
    expected = token_losses(logits, labels, targets.ids, targets.logits, targets.log_normalizer, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(
        CrossEntropy().task(logits, predictions), torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    )


def test_a_batch_of_silence_alone():
    logits = torch.randn(5, VOCABULARY, requires_grad=True)
    index = torch.tensor([0, 0, 1, 1, 1])
    losses = ctc_losses(logits, torch.empty(2, 0, dtype=torch.int64), index, 0)
    expected = -per_utterance(logits.log_softmax(-1)[:, 0], index, 2) * torch.tensor([2, 3])
    torch.testing.assert_close(per_utterance(losses, index, 2), expected)
    losses.sum().backward()
    assert bool(logits.grad.any())


def test_targets_are_fitted_to_the_students_frames():
    from workbench.cache.teacher_targets import ClipTargets
    from workbench.training.step.frames import aligned_and_taught, at_frames

    mine = ClipTargets(
        torch.tensor([[1, 0], [2, 0], [0, 3]], dtype=torch.int32), torch.rand(3, 2), torch.rand(3), None, 0.5,
        torch.tensor([1, 2, 0], dtype=torch.int32),
    )  # fmt: skip
    longer, shorter, same = (at_frames(mine, n) for n in (5, 2, 3))
    assert longer.top_ids.tolist() == [[1, 0], [2, 0], [0, 3], [-1, -1], [-1, -1]]
    assert longer.aligned.tolist() == [1, 2, 0, -1, -1]
    assert torch.equal(same.top_logits, mine.top_logits)
    aligned, taught = aligned_and_taught([[longer, shorter]])
    assert aligned.tolist() == [1, 2, 0, -1, -1, 1, 2]
    assert taught.tolist() == [[True] * 3 + [False] * 2 + [True] * 2]
    for none in (  # a teacher that was not asked, and one without a CTC head
        ClipTargets(torch.empty(2, 0, dtype=torch.int32), torch.empty(2, 0), torch.zeros(2), None, 0.0, torch.full((2,), -1, dtype=torch.int32)),
        ClipTargets(torch.ones(9, 4, dtype=torch.int32), torch.ones(9, 4), torch.ones(9), None, 0.0),
    ):  # fmt: skip
        fitted = at_frames(none, 4)
        assert (fitted.top_ids.shape, fitted.log_normalizer.shape) == ((4, 0), (4,))
        aligned, taught = aligned_and_taught([[fitted]])
        assert aligned.tolist() == [-1] * 4
        assert not taught.numel()
