"""What a stage may add to its losses, all together, in one process and in two."""

import pytest

from tests.conftest import DECODER
from tests.training.test_engine import figures, launch
from tests.training.test_targets_and_training import same, weights
from workbench.config.recipe import load_recipe
from workbench.training.trainer import distill


def everything(**changes):
    common = {**DECODER, "epochs": 1, "micro_batches": 4, "batch_seconds": 12.0, "consistency": 0.5, "teacher_adapter": {"learning_rate": 0.01}}  # fmt: skip
    return {
        "augment": {"noise_probability": 1.0, "time_masks": 1},
        "stages": {
            "layers": {**common, "decoder_matching": {"hidden": 1.0, "attention": 0.5}, **changes},
            "mixed": {**common, "epochs": 2, "mixup": {"fraction": 0.5}, **changes},
        },
    }


NAMES = ("loss", "task", "distillation", "hidden_matching", "attention_matching", "consistency", "adapted_teacher", "mixed")  # fmt: skip


def test_a_saved_recipe_with_every_key_trains_the_same(recipe, tmp_path):
    run = recipe("run", **everything(trainable="all"))
    run.save(tmp_path / "saved.yaml")
    again = load_recipe(tmp_path / "saved.yaml", [f"output={tmp_path / 'again'}"])
    assert again.same_training(run)
    distill(run)
    distill(again)
    assert same(weights(run.output), weights(again.output))
    assert all(figures(run.output, name) for name in NAMES)


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(recipe, tmp_path):
    two, one = recipe("two", **everything()), recipe("one", **everything())
    launch(two, tmp_path, processes=2)
    distill(one)
    for name in NAMES:
        assert figures(two.output, name) == pytest.approx(figures(one.output, name), rel=5e-3), name
