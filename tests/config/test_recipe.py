"""Recipes: what is shipped parses, what is wrong is named in one line."""

from pathlib import Path

import pytest
import yaml

from workbench.config.recipe import load_recipe, parse_recipe
from workbench.config.shipped import FOLDER, find_recipe, shipped_files
from workbench.core.errors import UserError

RECIPES = [one.path for one in shipped_files() if not one.is_study]  # studies: test_study.py
STAGE = {"trainable": "decoder", "epochs": 1, "learning_rate": 1e-4}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_shipped_recipes_parse(path):
    assert load_recipe(path).stages


def test_a_recipe_is_a_file_or_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quickstart = FOLDER / "quickstart.yaml"
    for given in ("quickstart", "recipes/quickstart.yaml", str(quickstart)):
        assert find_recipe(Path(given)) == quickstart
    assert find_recipe(Path("whisper-small-to-tiny")) == FOLDER / "gpu" / "whisper-small-to-tiny.yaml"
    with pytest.raises(UserError, match="the name of studies/d/tune, studies/tune; give"):
        find_recipe(Path("tune"))
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        find_recipe(Path("quikstart"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine: is a folder"):
        find_recipe(Path("mine"))
    (tmp_path / "quickstart").write_text("output: runs/mine\n")
    assert find_recipe(Path("quickstart")) == Path("quickstart")  # a user's own file comes first


def test_what_is_listed_of_a_shipped_file_is_one_sentence():
    about = {one.name: one.about for one in shipped_files()}
    assert (
        about["quickstart"]
        == "A student that runs at the length of the clip, from Whisper base and 15 minutes of speech, on any CPU."
    )
    assert all(text and "\n" not in text for text in about.values())


def test_overrides_reach_sections_and_numbers(tmp_path):
    recipe = load_recipe(
        RECIPES[0],
        ["stages.decoder.epochs=2", "seed=7", "stages.decoder.learning_rate=5e-6", "student.decoder_layers=[0, 5]"],
    )
    assert recipe.stages["decoder"].epochs == 2
    assert recipe.stages["decoder"].learning_rate == 5e-6
    assert recipe.student.decoder_layers == [0, 5]
    assert recipe.seed == 7


def test_a_resolved_recipe_reads_back_as_itself(tmp_path):
    recipe = load_recipe(RECIPES[0])
    recipe.save(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"techer": "x"}, "unknown key 'techer'; did you mean 'teacher'?"),
        ({"trailing_silence": {"train_mn": 1}}, "unknown key 'trailing_silence.train_mn'; did you mean 'train_min'?"),
        ({"stages": {"d": {**STAGE, "epoch": 1}}}, "did you mean 'epochs'?"),
        ({"stages": {"d": {**STAGE, "epochs": 0}}}, "stages.d.epochs is 0"),
        ({"stages": {"d": {**STAGE, "weighting": {"name": "adakb"}}}}, "did you mean 'adakd'?"),
        ({"stages": {"d": {**STAGE, "decoder_losses": False}}}, "has no loss"),
        ({"trailing_silence": {"train_min": 2.0, "train_max": 1.0}}, "is above train_max"),
        ({"precision": "fp61"}, "precision is 'fp61'"),
        ({"stages": {}}, "stages"),
    ],
)
def test_wrong_recipes_are_one_line_with_the_remedy(change, said):
    with pytest.raises(UserError) as error:
        parse_recipe({"output": "runs/x", "stages": {"d": STAGE}, **change}, "r.yaml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["seed", "stages.decoder=3=4=", "studnt.decoder_layers=2", "seed.x=1"])
def test_wrong_overrides_are_errors(override):
    with pytest.raises(UserError):
        load_recipe(RECIPES[0], [override])


def test_a_missing_or_broken_recipe_is_one_line(tmp_path):
    with pytest.raises(UserError, match="neither a file nor the name of a shipped recipe"):
        load_recipe(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(UserError, match="not valid YAML") as error:
        load_recipe(broken)
    assert "\n" not in str(error.value)
    broken.write_text(yaml.safe_dump(["list"]))
    with pytest.raises(UserError, match="expected keys and values"):
        load_recipe(broken)


@pytest.mark.parametrize("value", ["2026-13-45", "9" * 6000, "[" * 3000], ids=["date", "digits", "nested"])
def test_what_yaml_cannot_read_is_one_line(tmp_path, value):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"seed: {value}\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: (not valid YAML|is nested too deeply)"):
        load_recipe(path)
    with pytest.raises(UserError, match=r"override 'seed=.* is not a YAML value"):
        load_recipe(RECIPES[0], [f"seed={value}"])


EARLIER = """
output: runs/x
limit: 5
ema: 0.9
margin: {shortest: 0.1, longest: 0.5}
student: {initial: runs/y/student, encoder_variance: 0.9}
augment: {speeds: [0.9], noise_share: 0.5, noise_db: [5, 10]}
stages:
  one:
    trainable: decoder
    epochs: 3
    steps: 7
    clip_norm: 2.0
    learning_rate: 1.0e-4
    weighting: {name: almkd, first: 1, every: 2, step: 0.2, initial: 0.3}
    on_policy: {share: 0.25}
"""


def test_keys_of_earlier_versions_are_read():
    recipe = parse_recipe(yaml.safe_load(EARLIER), "old.yaml")
    stage = recipe.stages["one"]
    assert (recipe.max_clips, recipe.ema_decay, recipe.student.init_from) == (5, 0.9, "runs/y/student")
    assert (recipe.trailing_silence.train_min, recipe.trailing_silence.train_max) == (0.1, 0.5)
    assert (recipe.augment.speed_factors, recipe.augment.snr_db) == ([0.9], (5.0, 10.0))
    assert (stage.max_steps, stage.max_grad_norm, stage.on_policy.fraction) == (7, 2.0, 0.25)
    options = {"start_epoch": 1, "update_every": 2, "weight_learning_rate": 0.2, "initial_alpha": 0.3}
    assert options.items() <= stage.weighting.items()
    assert parse_recipe(recipe.model_dump(mode="json"), "new.yaml") == recipe


def test_overrides_may_have_earlier_names(tmp_path):
    (tmp_path / "old.yaml").write_text(EARLIER)
    given = [
        "margin.shortest=0.3",
        "stages.one.weighting.every=3",
        "stages.one.on_policy.share=0.5",
        "student.initial=z",
    ]
    recipe = load_recipe(tmp_path / "old.yaml", given)
    stage = recipe.stages["one"]
    assert (recipe.trailing_silence.train_min, recipe.student.init_from) == (0.3, "z")
    assert (stage.weighting["update_every"], stage.on_policy.fraction) == (3, 0.5)


def test_a_key_under_both_its_names_is_an_error():
    content = yaml.safe_load(EARLIER)
    content["stages"]["one"]["max_steps"] = 9
    with pytest.raises(
        UserError, match=r"old.yaml: stages.one.max_steps is given twice, also by its earlier name 'steps'"
    ):
        parse_recipe(content, "old.yaml")


def test_what_yaml_repeats_by_reference_is_read_in_time(tmp_path):
    """Aliases of aliases are three to the power of forty keys, and one that holds itself never ends."""
    lines = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}, r: *a{i - 1}}}" for i in range(1, 40)]
    for text in ("\n".join(lines), "a: &a {b: *a}"):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(UserError, match=r"unknown key|missing"):
            load_recipe(tmp_path / "r.yaml", ["seed=2"])


def test_an_override_replaces_an_option_under_its_earlier_name(tmp_path):
    (tmp_path / "old.yaml").write_text(EARLIER)
    recipe = load_recipe(tmp_path / "old.yaml", ["stages.one.weighting.start_epoch=0", "stages.one.max_steps=9"])
    assert recipe.stages["one"].weighting["start_epoch"] == 0
    assert recipe.stages["one"].max_steps == 9
