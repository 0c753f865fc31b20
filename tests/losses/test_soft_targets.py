"""Top-k, full and sampled targets against the exact KL: a sample is right in expectation, a bucket of all other tokens is not."""

import json

import pytest
import torch

from tests.conftest import DECODER
from tests.training.test_targets_and_training import killed_at, same, weights
from workbench.cache.tail import check_tail, tail_mass, uses_tail_bucket
from workbench.cache.teacher_targets import TargetSettings
from workbench.config.sections import TARGETS_OF, DivergenceRecipe
from workbench.core.errors import UserError
from workbench.losses.divergences import SampledTargets, SoftTargets, distillation, task_and_distillation_losses
from workbench.losses.objectives import cross_entropy, forward_kl
from workbench.losses.soft_targets import bytes_per_label, full_targets, sampled_targets, top_k_targets
from workbench.training.trainer import distill

VOCABULARY, LABELS, K, TAU = 400, 6, 8, 2.0
KL = DivergenceRecipe()


@pytest.fixture
def logits():
    """Student's and teacher's, flat enough that at temperature 2 the K likeliest tokens hold a small part of the mass."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = (2 * torch.randn(2, LABELS, VOCABULARY, generator=generator)).unbind()
    return student.requires_grad_(), teacher + 0.5 * student.detach()


def gradient(loss, student):
    return torch.autograd.grad(loss.sum(), student)[0]


def sampled(teacher, seed, k=K, samples=24):
    ids, weights, entropy = sampled_targets(teacher, k, samples, TAU, seed)
    return SampledTargets(ids.long(), weights, entropy)


def test_the_expectation_of_sampled_targets_is_the_full_kl_and_its_gradient_and_that_of_a_bucket_is_not(logits):
    student, teacher = logits
    exact = forward_kl(student, teacher, TAU)
    direction = gradient(exact, student)
    draws = [distillation(student, sampled(teacher, seed), KL, TAU) for seed in range(600)]
    values = torch.stack(draws).detach()
    error = values.std(0) / len(draws) ** 0.5
    assert ((values.mean(0) - exact.detach()).abs() < 4 * error).all()
    gradients = torch.stack([gradient(loss, student) for loss in draws])
    # 24 draws from the tail in each of the 600; the observed deviation would be 0 where a rare token was never drawn
    p = (teacher / TAU).softmax(-1)
    tail = 1 - p.topk(K, -1).values.sum(-1, keepdim=True)
    error = TAU * (p * tail / (24 * len(draws))).sqrt()
    assert ((gradients.mean(0) - direction).abs() < 6 * error + 1e-5).all()
    ids, kept, normalizer = top_k_targets(teacher, K, TAU)
    bucketed = distillation(student, SoftTargets(ids.long(), kept, normalizer), KL, TAU)
    torch.testing.assert_close(tail_mass(kept, normalizer, TAU).float(), tail[:, 0], rtol=1e-3, atol=1e-4)
    assert tail.mean() > 0.5
    assert (bucketed < 0.8 * exact).all()
    cosine = torch.nn.functional.cosine_similarity(gradient(bucketed, student), direction, dim=-1)
    averaged = torch.nn.functional.cosine_similarity(gradients.mean(0), direction, dim=-1)
    assert (cosine < 0.95).all()
    assert (averaged > 0.99).all()


def test_sampling_everything_in_one_draw_each_is_exact_and_weights_add_up_to_one(logits):
    student, teacher = logits
    everything = sampled(teacher, 0, k=VOCABULARY, samples=1)
    exact = forward_kl(student, teacher, TAU)
    torch.testing.assert_close(distillation(student, everything, KL, TAU), exact, rtol=1e-4, atol=1e-4)
    some = sampled(teacher, 1)
    torch.testing.assert_close(some.weights.sum(-1), torch.ones(LABELS))
    assert torch.equal(some.ids[:, 0], teacher.argmax(-1))
    top = {(row, int(token)) for row in range(LABELS) for token in some.ids[row, :K]}
    drawn = {(row, int(token)) for row in range(LABELS) for token in some.ids[row, K:]}
    assert not top & drawn


def test_a_seed_gives_the_same_tokens_and_another_one_others(logits):
    _, teacher = logits
    one, again, other = (sampled_targets(teacher, K, 24, TAU, seed) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])


def test_the_own_gradient_of_sampled_targets_is_autograds(logits):
    student, teacher = logits
    labels, targets = torch.arange(LABELS), sampled(teacher, 2)
    task, divergence = task_and_distillation_losses(student, labels, targets, KL, TAU)
    expected = cross_entropy(student, labels), distillation(student, targets, KL, TAU)
    torch.testing.assert_close((task, divergence), expected)
    factors = torch.rand(2, LABELS)
    found = gradient(factors[0] * task + factors[1] * divergence, student)
    torch.testing.assert_close(found, gradient(factors[0] * expected[0] + factors[1] * expected[1], student))


def test_full_targets_in_fp16_are_the_exact_kl_at_any_temperature(logits):
    student, teacher = logits
    ids, below, most = full_targets(teacher + 20)
    assert below.dtype == torch.float16
    assert torch.equal(ids[:, 0].long(), teacher.argmax(-1))
    for temperature in (1.0, 2.0):
        targets = SoftTargets.full(below.float() + most[:, None], temperature)
        exact = forward_kl(student, teacher, temperature)
        found = distillation(student, targets, KL, temperature)
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(gradient(found, student), gradient(exact, student), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", list(TARGETS_OF))
def test_every_divergence_says_which_targets_it_takes(recipe, logits, name):
    student, teacher = logits
    stages = {"decoder": {**DECODER, "divergence": {"name": name}}}
    for kind in ("top_k", "full", "sampled"):
        if kind in TARGETS_OF[name]:
            assert recipe(stages=stages, targets={"kind": kind}).targets.kind == kind
        else:
            with pytest.raises(
                UserError, match=rf"{name} cannot be computed from targets.kind sampled; use top_k or full"
            ):
                recipe(stages=stages, targets={"kind": kind})
    if "sampled" not in TARGETS_OF[name]:
        with pytest.raises(UserError, match="cannot be computed"):
            distillation(student, sampled(teacher, 0), DivergenceRecipe(name=name), TAU)


def test_annealing_kd_needs_all_logits_or_the_largest(recipe):
    with pytest.raises(UserError, match="annealing_kd, whose logit_mse cannot be computed"):
        recipe(stages={"decoder": {**DECODER, "weighting": {"name": "annealing_kd"}}}, targets={"kind": "sampled"})


KINDS = {
    "full": {"kind": "full", "temperature": 2.0},
    "sampled": {"kind": "sampled", "top_k": 4, "samples": 12, "temperature": 2.0},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_trains_resumes_and_computes_its_targets_once(recipe, cache, monkeypatch, kind):
    stages = {"decoder": {**DECODER, "epochs": 1}}
    whole = recipe("whole", targets=KINDS[kind], stages=stages)
    distill(whole)
    (store,) = (cache / "targets").glob("*/")
    shards = {p: p.stat().st_mtime_ns for p in store.glob("*.safetensors")}
    killed = recipe("killed", targets=KINDS[kind], stages=stages, checkpoint_minutes=1e-9)
    with killed_at(monkeypatch, 1):
        distill(killed)
    distill(killed)
    assert same(weights(whole.output), weights(killed.output))
    assert {p: p.stat().st_mtime_ns for p in store.glob("*.safetensors")} == shards
    assert json.loads((whole.output / "scores.json").read_text())["targets"] == {
        "kind": kind, "temperature": 2.0, "tail_mass": None,
    }  # fmt: skip


def test_a_narrowed_student_learns_from_full_and_from_sampled_targets(recipe):
    for kind, targets in KINDS.items():
        run = recipe(kind, targets=targets, student={"decoder_layers": [0, 2], "vocabulary": "corpus"},
                     stages={"decoder": {**DECODER, "epochs": 1}})  # fmt: skip
        distill(run)
        rows = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
        assert all(row["distillation"] > 0 for row in rows if "distillation" in row)


def test_settings_of_other_kinds_are_other_targets_and_old_ones_keep_their_place():
    given = {"teacher": "t", "top_k": 8, "temperature": 2.0, "margin": 0.2}
    places = [
        TargetSettings(**given),
        TargetSettings(**given, kind="sampled", samples=8),
        TargetSettings(**given, kind="sampled", samples=9),
        TargetSettings(**{**given, "temperature": 1.0}, kind="sampled", samples=8),
        TargetSettings(**given, kind="full"),
        TargetSettings(**given, trained_silence=0.4),
    ]
    assert len({settings.folder() for settings in places}) == len(places)
    # all logits serve every temperature
    assert (
        TargetSettings(**given, kind="full").folder()
        == TargetSettings(**{**given, "temperature": 1.0, "top_k": 32}, kind="full").folder()
    )


def flat(**changes):
    return {"top_k": 8, "temperature": 4.0, **changes}


def test_a_tail_above_a_fifth_is_refused_before_the_whole_pass_unless_it_is_accepted(recipe, cache, caplog):
    stages = {"decoder": {**DECODER, "epochs": 1}}
    with pytest.raises(
        UserError, match=r"8 likeliest tokens hold [\d.]+ % .* at temperature 4 .*targets\.kind to"
    ) as error:
        distill(recipe(targets=flat(), stages=stages))
    said = str(error.value)
    assert "\n" not in said
    assert all(remedy in said for remedy in ("sampled", "full", "targets.temperature to 1", "targets.allow_large_tail"))
    run = recipe("accepted", targets=flat(allow_large_tail=True), stages=stages)
    distill(run)
    assert "not that of the whole vocabulary" in caplog.text
    assert json.loads((run.output / "scores.json").read_text())["targets"]["tail_mass"] > 0.2


def test_the_tail_matters_only_where_a_loss_has_one(recipe):
    def with_weighting(options, **changes):
        return recipe(stages={"decoder": {**DECODER, "weighting": options, **changes}}, targets=flat())

    assert uses_tail_bucket(with_weighting({"name": "fixed"}))
    assert uses_tail_bucket(with_weighting({"name": "fixed", "task": 0.8, "distillation": 1.0}))
    assert not uses_tail_bucket(with_weighting({"name": "fixed", "alpha": 0.0}))
    assert not uses_tail_bucket(with_weighting({"name": "fixed", "task": 1.0, "distillation": 0.0}))
    assert not uses_tail_bucket(with_weighting({"name": "adakd"}, divergence={"name": "logit_mse"}))
    assert check_tail(with_weighting({"name": "fixed", "alpha": 0.0}), None, None) is None


def test_the_size_of_a_label_is_what_is_written(logits):
    _, teacher = logits
    kept = {
        "top_k": top_k_targets(teacher, K, TAU),
        "full": full_targets(teacher),
        "sampled": sampled_targets(teacher, K, 24, TAU, 0),
    }
    for kind, tensors in kept.items():
        size = sum(t.numel() * t.element_size() for t in tensors)
        assert size == LABELS * bytes_per_label(kind, K, 24, VOCABULARY)
