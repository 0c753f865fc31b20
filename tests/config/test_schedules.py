"""A weighting whose schedule never takes effect in a run is an error before training, not a plain run under another name."""

import pytest
import yaml

from tests.conftest import DECODER
from workbench.cli.app import main
from workbench.config.recipe import parse_recipe
from workbench.core.errors import UserError
from workbench.training.trainer import distill
from workbench.weighting import TeacherStatistics, build_weighting, known_weightings

STREAM = {"corpus": "hf:x", "stream": {}}


def parsed(weighting, epochs=10, more=None, **stage):
    decoder = {**DECODER, "epochs": epochs, "weighting": weighting, **stage}
    return parse_recipe({"output": "run", "stages": {"decoder": decoder}, **(more or {})}, "test.yaml")


@pytest.mark.parametrize(
    ("weighting", "epochs", "said"),
    [
        (
            {"name": "amal"},
            10,
            "before epoch 10 .* reaches 10 epoch.* set start_epoch below 10, for example start_epoch: 1, update_every: 1",
        ),
        ({"name": "almkd", "start_epoch": 4}, 4, "set start_epoch below 4"),
        ({"name": "almkd"}, 1, "for example start_epoch: 0, update_every: 1"),
        ({"name": "rw_kd", "start_epoch": 3}, 2, "set start_epoch below 2"),
        ({"name": "adakd", "k_schedule": "epoch"}, 1, "k stays k0; set k_schedule: step"),
        ({"name": "annealing_kd", "phase1": 0}, 3, "phase1 is 0"),
        ({"name": "askd", "self_teacher": "previous_epoch"}, 1, "previous_epoch .* set self_teacher: ema"),
    ],
)
def test_a_schedule_that_begins_after_the_end_is_an_error(weighting, epochs, said):
    with pytest.raises(UserError, match=f"test.yaml: stages.decoder.weighting: {weighting['name']} would .*{said}"):
        parsed(weighting, epochs)


@pytest.mark.parametrize(
    ("weighting", "epochs", "more"),
    [
        ({"name": "amal"}, 11, {}),
        ({"name": "amal", "start_epoch": 1, "update_every": 1}, 10, {}),
        ({"name": "almkd"}, 2, {}),
        ({"name": "rw_kd"}, 1, {}),
        ({"name": "adakd", "k_schedule": "epoch", "k1": 2.0}, 1, {}),
        ({"name": "adakd", "k_schedule": "epoch"}, 2, {}),
        ({"name": "annealing_kd", "phase1": 1}, 1, {}),
        ({"name": "askd", "phase1": 1.0, "self_teacher": "previous_epoch"}, 1, {}),
    ],
)
def test_a_schedule_that_takes_effect_is_none(weighting, epochs, more):
    assert parsed(weighting, epochs, more).stages["decoder"].weighting["name"] == weighting["name"]


def test_a_stream_has_windows_as_epochs_of_its_self_teacher():
    askd = {"name": "askd", "self_teacher": "previous_epoch"}
    assert parsed(askd, 1, STREAM, steps=100).stages["decoder"].epochs == 1
    with pytest.raises(UserError, match="set start_epoch below 1"):
        parsed({"name": "almkd"}, 1, STREAM, steps=100)


@pytest.mark.parametrize("name", [name for name in known_weightings() if name != "fixed"])
def test_a_weighting_of_losses_that_are_not_there_is_an_error(name):
    encoder = {"trainable": "encoder", "encoder_matching": 1.0, "decoder_losses": False}
    with pytest.raises(UserError, match=f"{name} would have no effect: it weights the decoder's losses"):
        parsed({"name": name, **({"start_epoch": 1} if name == "amal" else {})}, **encoder)


def test_a_weighting_is_refused_where_every_micro_batch_is_on_policy():
    for name in ("superloss", "adakd"):
        with pytest.raises(UserError, match=f"{name} would have no effect: on_policy.fraction is 1"):
            parsed({"name": name}, on_policy={"fraction": 1})
    for weighting in ({"name": "fixed"}, {"name": "annealing_kd"}, {"name": "askd"}):  # these act there or beside it
        parsed(weighting, on_policy={"fraction": 1})
    with pytest.raises(UserError, match="askd would have no effect"):
        parsed({"name": "askd", "phase1": 1}, on_policy={"fraction": 1})


def test_steps_that_end_before_a_schedule_begins_are_an_error_before_the_teacher_runs(recipe, cache):
    almkd = {"name": "almkd", "start_epoch": 2, "update_every": 1, "steps_per_update": 1}
    stage = {**DECODER, "epochs": 5, "weighting": almkd}
    with pytest.raises(
        UserError, match=r"stages.decoder.weighting.*max_steps: 4 leaves 2 epoch\(s\).*set start_epoch below 2"
    ):
        distill(recipe(stages={"decoder": {**stage, "max_steps": 4}}))
    assert not (cache / "targets").exists()
    distill(recipe("longer", stages={"decoder": {**stage, "max_steps": 8}}))
    with pytest.raises(UserError, match="phase 2 never begins"):
        distill(recipe("one", stages={"decoder": {**DECODER, "max_steps": 1, "weighting": {"name": "askd"}}}))


def test_uncertainty_that_is_alike_everywhere_weighs_nothing():
    with pytest.raises(UserError, match="mc_dropout would have no effect"):
        build_weighting({"name": "mc_dropout"}, TeacherStatistics((1.0, 2.0), {"a": 0.0, "b": 0.0}))


def test_the_command_line_says_it_in_one_line(tmp_path, capsys, monkeypatch):
    path = tmp_path / "amal.yaml"
    path.write_text(yaml.safe_dump({"output": str(tmp_path / "run"), "stages": {"all": {
        "trainable": "all", "epochs": 10, "learning_rate": 1e-4, "weighting": {"name": "amal"}}}}))  # fmt: skip
    monkeypatch.setattr("sys.argv", ["workbench", "distill", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert "amal.yaml: stages.all.weighting: amal would have no effect" in line
