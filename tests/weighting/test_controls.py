"""Controls: the same weights for other utterances, or their mean for all."""

import pytest
import torch

from tests.conftest import DECODER
from workbench.config.recipe import parse_recipe
from workbench.core.errors import UserError
from workbench.training.trainer import distill
from workbench.weighting import TeacherStatistics, WeightingInput, build_weighting
from workbench.weighting.controls import Controlled, groups_of_like_length

LOSSES = (0.2, 0.9, 1.4, 2.5, 4.0, 0.1)
LABELS = (3, 4, 4, 9, 10, 30)  # of each utterance


def inputs(progress=0.3, losses=LOSSES, labels=LABELS):
    count = len(losses)
    return WeightingInput(
        ids=[f"clip{i}" for i in range(count)],
        task=torch.linspace(0.5, 2.0, count),
        distillation=torch.linspace(1.0, 0.2, count),
        teacher_loss=torch.tensor(losses),
        progress=progress,
        by_teacher=torch.linspace(1.0, 0.2, count)[None],
        utterance_index=torch.repeat_interleave(torch.arange(count), torch.tensor(labels)),
    )


def build(name="adakd", seed=1, **options):
    return build_weighting({"name": name, **options}, TeacherStatistics(LOSSES), seed)


def test_permuted_weights_are_the_same_weights_for_other_utterances():
    own, permuted = build()(inputs()), build(permute=True)(inputs())
    torch.testing.assert_close(permuted.distillation.sort().values, own.distillation.sort().values)
    torch.testing.assert_close(permuted.task, 1 - permuted.distillation)  # both weights of an utterance go together
    assert not torch.isclose(permuted.distillation, own.distillation).any()  # nobody keeps its own
    torch.testing.assert_close(permuted.log["exchanged"], torch.ones(6))
    assert permuted.log["k"] == own.log["k"]


def test_weights_are_exchanged_among_utterances_of_like_length():
    assert groups_of_like_length(LABELS) == [[0, 1, 2], [3, 4, 5]]
    assert groups_of_like_length([5, 50, 6, 52]) == [[0, 2], [1, 3]]
    assert groups_of_like_length([10]) == [[0]]
    control = build(permute=True)
    for progress in (0.0, 0.1, 0.2, 0.3, 0.4):
        order = control.permutation(inputs(progress)).tolist()
        assert set(order[:3]) == {0, 1, 2}
        assert set(order[3:]) == {3, 4, 5}


def test_the_exchange_follows_from_seed_utterances_and_progress():
    given = [inputs(p) for p in (0.1, 0.2, 0.3, 0.4, 0.5)]
    orders = [[build(seed=seed, permute=True).permutation(one).tolist() for one in given] for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert len({tuple(order) for order in orders[0]}) > 1  # another one at every step


def test_schedule_only_gives_all_the_mean():
    own, mean = build()(inputs()), build(schedule_only=True)(inputs())
    torch.testing.assert_close(mean.distillation, torch.full((6,), float(own.distillation.mean())))
    torch.testing.assert_close(mean.task, torch.full((6,), float(own.task.mean())))


@pytest.mark.parametrize("control", ["permute", "schedule_only"])
def test_weights_of_several_teachers_are_kept_together(control):
    one = inputs()
    two = WeightingInput(**{**one.__dict__, "by_teacher": torch.stack([one.distillation, one.task])})
    own, found = build("almkd")(two), build("almkd", **{control: True})(two)
    assert found.distillation.shape == own.distillation.shape == (2, 6)
    torch.testing.assert_close(found.distillation.mean(1), own.distillation.mean(1))
    torch.testing.assert_close(found.task + found.distillation.sum(0), torch.ones(6))


def test_hooks_are_the_weightings_own():
    askd = build("askd")
    controlled = Controlled(askd, "permute")
    assert controlled.self_teacher == askd.self_teacher
    assert [controlled.is_self_distilling(p) for p in (0.0, 0.9)] == [False, True]
    learnt = build("almkd", permute=True, start_epoch=1)
    assert learnt.meta_learned
    assert "start_epoch: 0" in learnt.nothing_learnt()
    assert [learnt.should_look_ahead(epoch, 1e-4) for epoch in (0, 1)] == [False, True]
    learnt.load_state_dict({"weights": {"clip0": [0.1, 0.9]}, "last_update_learning_rate": None})
    assert learnt.state_dict()["weights"] == {"clip0": [0.1, 0.9]}
    assert learnt.nothing_learnt() is None
    noise = Controlled(build("homoscedastic"), "permute")
    before = noise(inputs()).task.clone()
    noise.observe(inputs())
    noise.on_optimizer_step(lambda total: total)
    assert not torch.equal(noise(inputs()).task, before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "adakd", "permute": "yes"}, "weighting option permute is 'yes'; expected true or false"),
        (
            {"name": "adakd", "permute": True, "schedule_only": True},
            "permute and schedule_only are both on; choose one",
        ),
        ({"name": "conditional", "permute": True}, "weighting 'conditional' weights single tokens"),
        ({"name": "adakd", "permut": True}, "did you mean 'permute'"),
        (
            {"name": "askd", "schedule_only": True},
            "'askd' weights all utterances alike, so schedule_only would have no effect",
        ),
        ({"name": "fixed", "permute": True}, "'fixed' weights all utterances alike"),
        (
            {"name": "almkd", "first": 1, "start_epoch": 2},
            "start_epoch is given twice, also by its earlier name 'first'",
        ),
    ],
)
def test_controls_that_cannot_be_are_refused_with_the_recipe(options, said):
    content = {"output": "runs/x", "stages": {"decoder": {**DECODER, "weighting": options}}}
    with pytest.raises(UserError, match=said):
        parse_recipe(content, "r.yaml")


def test_a_recipe_keeps_its_control_and_is_as_before_without_one():
    def weighting(options):
        content = {"output": "runs/x", "stages": {"decoder": {**DECODER, "weighting": options}}}
        return parse_recipe(content, "r.yaml").stages["decoder"].weighting

    assert weighting({"name": "adakd", "permute": True})["permute"] is True
    assert weighting({"name": "adakd", "permute": False}) == weighting({"name": "adakd"})
    assert "permute" not in weighting({"name": "adakd"})


def test_a_controlled_run_has_the_means_of_the_weighting_and_other_weights(recipe):
    """One step of the same student: its weights are the same ones, elsewhere."""
    import pyarrow.parquet as pq

    found = {}
    for name, options in (("own", {}), ("permuted", {"permute": True})):
        stage = {**DECODER, "epochs": 1, "micro_batches": 1, "weighting": {"name": "adakd", **options}}
        parsed = recipe(name, stages={"decoder": stage})
        distill(parsed)
        table = pq.read_table(parsed.output / "weights.parquet", filters=[("step", "==", 1)])
        found[name] = dict(zip(table["id"].to_pylist(), table["alpha"].to_pylist(), strict=True))
    assert found["own"].keys() == found["permuted"].keys()
    assert sorted(found["own"].values()) == pytest.approx(sorted(found["permuted"].values()))
    assert found["own"] != found["permuted"]


def test_matching_a_gradient_to_itself_is_refused():
    for divergence, weighting in (("forward_kl", "fixed"), ("jsd", "annealing_kd")):
        options = {"divergence": {"name": divergence, "match_gradient": True}, "weighting": {"name": weighting}}
        with pytest.raises(UserError, match="match_gradient would have no effect"):
            parse_recipe({"output": "runs/x", "stages": {"decoder": {**DECODER, **options}}}, "r.yaml")
