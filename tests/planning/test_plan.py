"""Plans reckoned on the meta device: against figures that can be worked out, and against this machine's memory."""

import json

import pytest
import torch

from workbench.config.recipe import load_recipe, parse_recipe
from workbench.config.sections import StudentRecipe
from workbench.config.shipped import FOLDER
from workbench.core.errors import UserError
from workbench.models.students import parameters
from workbench.planning.devices import DEVICES
from workbench.planning.flops import saved_bytes
from workbench.planning.plan import meta_model, meta_student, plan

GPU_RECIPES = sorted((FOLDER / "gpu").glob("*.yaml"))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("openai/whisper-tiny", 37.76), ("whisper-small", 241.73), ("openai/whisper-large-v3", 1543.49)],
)
def test_the_published_sizes_have_the_published_parameters(name, millions):
    assert parameters(meta_model(name)) / 1e6 == pytest.approx(millions, rel=1e-4)


def test_distil_large_v3_has_its_published_parameters():
    student = meta_student(meta_model("openai/whisper-large-v3"), StudentRecipe(decoder_layers=2))
    assert parameters(student) / 1e6 == pytest.approx(756.4, rel=1e-3)
    assert all(p.is_meta for p in student.parameters())


def a_recipe(**stage):
    stages = {"s": {"trainable": "all", "epochs": 2, "learning_rate": 1e-4, "batch_seconds": 32, **stage}}
    return parse_recipe(
        {"output": "x", "teacher": "openai/whisper-small", "stages": stages, "precision": "bf16"}, "test"
    )


def test_the_operations_of_a_step_are_six_a_parameter_and_position():
    """Forward and backward cost about 6 operations a parameter and position; the attention comes on top."""
    found = plan(a_recipe(), "h100-80gb", 1, 100, 20.0, 0.35)
    model = meta_model("openai/whisper-small")
    encoder = sum(p.numel() for n, p in model.model.encoder.named_parameters() if "layers" in n)
    positions = 20.9 * 50
    tflop = found.stages[0].tflop_a_clip
    assert 6 * encoder * positions / 1e12 < tflop < 2 * 6 * encoder * positions / 1e12


def test_teachers_that_run_in_the_steps_or_teach_one_stage_count():
    plain, running = (
        plan(a_recipe(**stage), "h100-80gb", 1, 100, 20.0, 0.35) for stage in ({}, {"on_policy": {"fraction": 0.5}})
    )
    small = parameters(meta_model("whisper-small"))
    # its weights in fp32, and in bf16 under autocast
    assert running.stages[0].fixed_gb - plain.stages[0].fixed_gb == pytest.approx(6 * small / 1e9)
    assert running.targets_gb > plain.targets_gb  # its encoder's states
    two = plan(a_recipe(teacher="openai/whisper-medium"), "h100-80gb", 1, 100, 20.0, 0.35)
    medium = parameters(meta_model("whisper-medium"))
    assert two.teacher_parameters == small + medium
    assert two.teacher_hours > 3 * plain.teacher_hours
    assert two.stages[0].fixed_gb == plain.stages[0].fixed_gb


@pytest.mark.slow
def test_more_devices_cost_less_time_and_smaller_ones_hold_less():
    one, eight = (plan(a_recipe(), "h100-80gb", n, 100, 20.0, 0.35) for n in (1, 8))
    assert one.stages[0].hours == pytest.approx(8 * eight.stages[0].hours)
    small = plan(a_recipe(), "l4-24gb", 1, 100, 20.0, 0.35)
    assert small.stages[0].largest_batch_clips < one.stages[0].largest_batch_clips
    checkpointed = plan(a_recipe(activation_checkpointing=True), "l4-24gb", 1, 100, 20.0, 0.35)
    assert checkpointed.stages[0].largest_batch_clips > 2 * small.stages[0].largest_batch_clips


def test_a_corpus_vocabulary_is_said_to_be_estimated_with_all_tokens(caplog):
    caplog.set_level("INFO", "workbench")
    recipe = a_recipe()
    narrow = recipe.model_copy(update={"student": recipe.student.model_copy(update={"vocabulary": "corpus"})})
    plan(narrow, "l4-24gb", 1, 1, 10.0, 0.35)
    assert "estimated with all tokens" in caplog.text


def test_a_layer_that_is_to_stay_in_fp32_must_be_there():
    def planned(decoder):
        recipe = a_recipe(quantization={"encoder": "int8-5", "decoder": decoder})
        student = StudentRecipe(decoder_layers=6)
        return plan(recipe.model_copy(update={"student": student}), "l4-24gb", 1, 1, 10.0, 0.35)

    planned("q4-5")
    with pytest.raises(UserError, match=r"stages.s.quantization: decoder is 'q4-6', but there is no layer 6"):
        planned("q4-6")


def test_what_is_kept_for_the_backward_pass_is_counted_once():
    linear = torch.nn.Linear(8, 8, device="meta")
    x = torch.zeros(4, 8, device="meta", requires_grad=True)
    with saved_bytes(linear) as saved:
        hidden = linear(x)
        (hidden * hidden).sum()
    assert saved[0] == 2 * 4 * 8 * 4  # x and the hidden layer; not the weight, and not the hidden layer twice


@pytest.mark.slow
@pytest.mark.parametrize("path", GPU_RECIPES, ids=lambda p: p.stem)
def test_the_gpu_recipes_fit_their_device(path):
    assert "NOT YET RUN ON A GPU" in path.read_text()
    found = plan(load_recipe(path), "h100-80gb", 8, 1000, 15.0, 0.35)
    for stage in found.stages:
        assert stage.largest_batch_clips > 8
        assert stage.micro_batches % 8 == 0
    assert json.dumps(found.as_json())


def test_there_are_gpu_recipes():
    assert len(GPU_RECIPES) >= 3
    assert all(d.memory_gb > 0 and d.tflops["bf16"] > d.tflops["fp32"] for d in DEVICES.values())


def test_an_unknown_device_or_size_is_one_line():
    with pytest.raises(UserError, match="h100-80gb"):
        plan(a_recipe(), "h100", 1, 1, 10.0, 0.35)
    recipe = parse_recipe({"output": "x", "teacher": "openai/whisper-small",
                           "student": {"init_from": "openai/whisper-large-v3"},
                           "stages": {"s": {"trainable": "all", "epochs": 1, "learning_rate": 1e-4}}}, "t")  # fmt: skip
    with pytest.raises(UserError, match="vocabulary 51,866, teacher 51,865"):
        plan(recipe, "h100-80gb", 1, 1, 10.0, 0.35)


@pytest.mark.parametrize("added", [{"intermediate_ctc": {"layer": 0}}, {"oracle_teacher": {}}])
def test_what_needs_a_ctc_head_is_refused(added):
    with pytest.raises(UserError, match=r"stages\.\w+\.\w+ needs a student with a CTC head"):
        plan(a_recipe(trainable="all", **added), "h100-80gb", 1, 100, 20.0, 0.35)
