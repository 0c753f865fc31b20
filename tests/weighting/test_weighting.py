"""Weights against hand-computed cases."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch

from workbench.config.sections import DivergenceRecipe
from workbench.core.errors import UserError
from workbench.weighting import TeacherStatistics, WeightingInput, build_weighting, known_weightings, parse_settings

LOSSES = (0.5, 1.0, 1.5, 5.0)  # mean 2.0, median 1.25
X = torch.tensor(LOSSES)
IDS = ["a", "b", "c", "d"]


def weigh(options, progress, x=X):
    weighting = build_weighting(options, TeacherStatistics(LOSSES))
    return weighting(
        WeightingInput(
            ids=IDS[: len(x)],
            task=torch.rand(len(x)),
            distillation=torch.rand(len(x)),
            teacher_loss=x,
            progress=progress,
        )
    )


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
    torch.testing.assert_close(
        scaled(WeightingInput(ids=IDS, task=X, distillation=X, teacher_loss=10 * X, progress=0.0)).distillation, found
    )


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


def inputs(**changes):
    torch.manual_seed(0)
    given = {
        "ids": IDS,
        "task": 3 * torch.rand(4),
        "distillation": 2 * torch.rand(4),
        "teacher_loss": X,
        "progress": 0.0,
    }
    return WeightingInput(**(given | changes))


def build(**options):
    return build_weighting(options, TeacherStatistics(LOSSES))


def test_adakd_by_epoch_is_constant_within_an_epoch():
    weighting = build(name="adakd", k_schedule="epoch")
    weighed = [weighting(inputs(progress=p, epoch=1, epochs=3)).distillation for p in (0.34, 0.6)]
    torch.testing.assert_close(weighed[0], weighed[1])
    assert weighting(inputs(epoch=2, epochs=3)).log["k"] == -1.0


def losses_that_depend_on(parameter):
    """Task and distillation losses of three utterances as functions of a parameter."""
    task = torch.stack([(parameter * c).square().sum() for c in (0.2, 0.7, 1.1)])
    distillation = torch.stack([(parameter - c).abs().sum() * 0.3 for c in (0.1, 0.5, 2.0)])
    return task, distillation


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_gives_the_gradient_of_the_focal_loss(gamma):
    parameter = torch.randn(5, requires_grad=True)
    task, distillation = losses_that_depend_on(parameter)
    loss = 0.7 * task + 0.3 * distillation
    (expected,) = torch.autograd.grad(((1 - torch.exp(-loss)) ** gamma * loss).mean(), parameter, retain_graph=True)
    weights = build(name="focal", gamma=gamma, alpha=0.3)(
        inputs(ids=IDS[:3], task=task.detach(), distillation=distillation.detach(), teacher_loss=X[:3])
    )
    (found,) = torch.autograd.grad((weights.task * task + weights.distillation * distillation).mean(), parameter)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("regularization", [0.25, 1.0, 4.0])
def test_superloss_is_the_minimum_over_s_and_its_factor_the_slope(regularization):
    from workbench.weighting.systems.superloss import confidence

    excess = torch.tensor([-3.0, -0.4, 0.0, 0.5, 6.0])
    s = confidence(excess, regularization)

    def objective(s):
        return excess * s + regularization * s.log() ** 2

    least = objective(s)
    for nearby in (0.99, 1.01):
        changed = s * nearby
        inside = changed <= math.e + 1e-6  # where (L - t) / lambda is below -2/e, s stays at its largest, e
        assert (objective(changed) >= least - 1e-6)[inside | (excess / regularization > -2 / math.e)].all()
    assert s[2].item() == pytest.approx(1.0)
    assert s[0].item() == pytest.approx(math.e, rel=1e-4)
    assert (s.diff() <= 0).all()


def test_lambert_w_inverts_w_exp_w():
    from workbench.weighting.systems.superloss import lambert_w

    w = torch.linspace(-1 + 1e-4, 4, 50, dtype=torch.float64)
    torch.testing.assert_close(lambert_w(w * w.exp()), w, rtol=1e-6, atol=1e-6)


def test_superloss_follows_the_mean_of_whole_steps_over_processes():
    weighting = build(name="superloss", momentum=0.5, alpha=0.0)
    for losses in ([1.0, 3.0], [5.0, 7.0]):  # two micro-batches of one step
        weighting.observe(inputs(ids=IDS[:2], task=torch.tensor(losses), distillation=X[:2], teacher_loss=X[:2]))
    weighting.on_optimizer_step(lambda local: 2 * local)  # another process had the same
    assert weighting.threshold == pytest.approx(4.0)
    weighting.observe(inputs(ids=IDS[:1], task=torch.tensor([8.0]), distillation=X[:1], teacher_loss=X[:1]))
    weighting.on_optimizer_step(lambda local: local)
    other = build(name="superloss")
    other.load_state_dict(weighting.state_dict())
    assert other.threshold == pytest.approx(0.5 * 4 + 0.5 * 8)


def test_homoscedastic_descends_its_own_loss():
    weighting = build(name="homoscedastic", learning_rate=0.1)
    s = torch.zeros(2, requires_grad=True)
    for _ in range(5):
        given = inputs()
        weights = weighting(given)
        torch.testing.assert_close(weights.task[0], torch.exp(-s[0]).detach())
        loss = (-s[0]).exp() * given.task.mean() + s[0] / 2 + (-s[1]).exp() * given.distillation.mean() + s[1] / 2
        (slope,) = torch.autograd.grad(loss, s)
        s = (s - 0.1 * slope).detach().requires_grad_()
        weighting.observe(given)
        weighting.on_optimizer_step(lambda local: local)
    assert weighting.log_variances == pytest.approx(s.tolist(), rel=1e-5)


@pytest.mark.parametrize("name", known_weightings())
def test_weighing_a_micro_batch_changes_no_state(name):
    """`__call__` is also given stand-ins, whose clips belong to another process; only `observe` may remember."""
    statistics = TeacherStatistics(LOSSES, dict.fromkeys(IDS, 0.1) | {"a": 0.2})
    weighting = build_weighting({"name": name}, statistics)
    given = inputs(by_teacher=torch.rand(1, 4), teacher_right=torch.tensor([True, False]))
    weighting(given)
    weighting.on_optimizer_step(lambda local: local)
    fresh = build_weighting({"name": name}, statistics)
    assert weighting.state_dict() == fresh.state_dict()
    first, second = weighting(given), fresh(given)
    torch.testing.assert_close(first.distillation, second.distillation)


@pytest.mark.parametrize("name", ["superloss", "homoscedastic"])
def test_a_step_without_losses_to_weigh_leaves_the_state_as_it_is(name):
    """All of its micro-batches on-policy, on every process or on this one alone."""
    weighting = build(name=name)
    weighting.observe(inputs())
    weighting.on_optimizer_step(lambda local: local)
    before = copy.deepcopy(weighting.state_dict())
    weighting.on_optimizer_step(lambda local: local)
    assert weighting.state_dict() == before
    other = build(name=name)
    other.load_state_dict(before)
    other.observe(inputs(task=X))
    seen = []
    other.on_optimizer_step(lambda local: seen.append(local) or local)
    weighting.on_optimizer_step(lambda local: local + seen[0])  # another process had losses
    assert weighting.state_dict() == other.state_dict()
    assert weighting.state_dict() != before


def test_conditional_takes_the_teacher_where_it_is_right():
    right = torch.tensor([True, False, True])
    weights = build(name="conditional")(inputs(teacher_right=right))
    assert weights.by_token
    assert weights.distillation.tolist() == [1.0, 0.0, 1.0]
    assert weights.task.tolist() == [0.0, 1.0, 0.0]


def test_annealing_kd_raises_the_teachers_logits_then_leaves_them():
    weighting = build(name="annealing_kd", phase1=0.5, max_temperature=4)
    scales = [weighting.divergence(DivergenceRecipe(), p).teacher_scale for p in (0.0, 0.13, 0.26, 0.38, 0.49)]
    assert scales == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert weighting.divergence(DivergenceRecipe(), 0.0).name == "logit_mse"
    early, late = weighting(inputs(progress=0.49)), weighting(inputs(progress=0.5))
    assert (early.task[0], early.distillation[0], late.task[0], late.distillation[0]) == (0, 1, 1, 0)


@pytest.mark.parametrize(("decay", "half"), [("linear", 0.45), ("cosine", 0.45), ("exponential", math.sqrt(0.8 * 0.1))])
def test_askd_lets_the_teacher_go(decay, half):
    weighting = build(name="askd", phase1=0.6, w0=0.8, w1=0.1, decay=decay)
    assert [weighting.teacher_weight(p) for p in (0.0, 0.3, 0.6)] == pytest.approx([0.8, half, 0.1])
    assert [weighting.is_self_distilling(p) for p in (0.0, 0.59, 0.6, 1.0)] == [False, False, True, True]
    assert weighting(inputs(progress=0.9)).distillation[0].item() == pytest.approx(0.3)
    assert weighting.self_teacher.kind == "ema"
    assert build(name="askd", phase1=1.0).self_teacher is None


def test_askd_intermediate_ramps_up_as_ctc_self_distillation_does():
    weighting = build(name="askd", phase1=0.5, self_teacher="intermediate")
    assert [weighting.self_weight(p) for p in (0.5, 0.75, 1.0)] == pytest.approx([0.3, 0.5, 0.7])


def test_uncertainty_lowers_the_weight_of_the_teacher():
    statistics = TeacherStatistics(LOSSES, {"a": 0.0, "b": 0.1, "c": 0.2, "d": 0.1})
    alpha = build_weighting({"name": "mc_dropout"}, statistics)(inputs()).distillation
    assert alpha.tolist() == pytest.approx([1.0, math.exp(-1), math.exp(-2), math.exp(-1)])


@pytest.mark.parametrize("name", known_weightings())
def test_the_documented_defaults_are_the_defaults(name):
    table = Path("docs/weightings.md").read_text(encoding="utf-8").split("## Defaults and their sources", 1)[1]
    (row,) = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
    for option, value in parse_settings({"name": name}).model_dump().items():
        shown = str(value).lower()
        found = re.search(rf"`{option}`(?:, `\w+`)?:? ([\w.+-]+)", row)
        assert found, f"{option} is missing"
        assert found.group(1).rstrip(".") == shown, option
    assert row.count("[I]") + row.count("[P]") > 0 or name == "conditional"


def test_a_new_system_is_one_new_file(tmp_path, monkeypatch):
    from workbench.weighting import systems

    (tmp_path / "coin.py").write_text(
        "from pydantic import BaseModel\n"
        "from workbench.weighting.protocol import Weighting, convex, full_like\n"
        "class Settings(BaseModel):\n    share: float = 0.25\n"
        "class Coin(Weighting):\n"
        "    def __init__(self, settings): self.settings = settings\n"
        "    def __call__(self, inputs): return convex(full_like(inputs.task, self.settings.share))\n"
        "def build(settings, statistics): return Coin(settings)\n"
    )
    monkeypatch.setattr(systems, "__path__", [*systems.__path__, str(tmp_path)])
    assert "coin" in known_weightings()
    assert build(name="coin", share=0.75)(inputs()).distillation.tolist() == [0.75] * 4
    with pytest.raises(UserError, match="did you mean 'share'"):
        parse_settings({"name": "coin", "shar": 1})
