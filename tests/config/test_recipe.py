"""Recipes: what is shipped parses, what is wrong is named in one line."""

import pytest
import yaml

from tests.conftest import ROOT
from workbench.config.recipe import load_recipe, parse_recipe
from workbench.core.errors import UserError

SHIPPED = sorted((ROOT / "recipes").rglob("*.yaml"))
RECIPES = [path for path in SHIPPED if "\narms:" not in path.read_text()]  # studies: test_study.py
STAGE = {"trainable": "decoder", "epochs": 1, "learning_rate": 1e-4}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_shipped_recipes_parse(path):
    assert load_recipe(path).stages


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
        ({"margin": {"shortst": 1}}, "unknown key 'margin.shortst'; did you mean 'shortest'?"),
        ({"stages": {"d": {**STAGE, "epoch": 1}}}, "did you mean 'epochs'?"),
        ({"stages": {"d": {**STAGE, "epochs": 0}}}, "stages.d.epochs is 0"),
        ({"stages": {"d": {**STAGE, "weighting": {"name": "adakb"}}}}, "did you mean 'adakd'?"),
        ({"stages": {"d": {**STAGE, "decoding": False}}}, "has no loss"),
        ({"margin": {"shortest": 2.0, "longest": 1.0}}, "is above longest"),
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
    with pytest.raises(UserError, match="no such recipe"):
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
