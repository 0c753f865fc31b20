"""Plans against figures that can be worked out, and against this machine's memory."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.ctc_checkpoints import KINDS, TINY, write_checkpoint
from workbench.cache.decoded_audio import audio_bytes
from workbench.config.recipe import load_recipe, parse_recipe
from workbench.config.sections import StudentRecipe
from workbench.config.shipped import FOLDER
from workbench.core.errors import UserError
from workbench.losses.soft_targets import bytes_per_label
from workbench.models import open_family
from workbench.models.students import parameters
from workbench.planning.devices import DEVICES
from workbench.planning.flops import flop_counter, saved_bytes
from workbench.planning.models import meta_model, meta_student
from workbench.planning.plan import plan

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


def ctc_plan(folder, kind, layers, stages=None, **changes):
    if not folder.exists():
        write_checkpoint(folder, kind)
    stages = stages or {"s": {"trainable": "all", "epochs": 2, "learning_rate": 1e-4, "batch_seconds": 32}}
    content = {
        "output": "x",
        "teacher": str(folder),
        "student": {"encoder_layers": layers},
        "stages": stages,
        **changes,
    }
    return plan(parse_recipe(content, "test"), "l4-24gb", 1, 10, 10.0, 0.35)


@pytest.mark.parametrize("kind", KINDS)
def test_models_with_a_ctc_head_are_estimated(tmp_path, kind):
    folder = tmp_path / kind
    found = ctc_plan(folder, kind, 2)
    family = open_family(folder)
    model = family.load()
    assert found.teacher_parameters == parameters(model)
    (stage,) = found.stages
    own = sum(p.numel() for p in family.build_student(model, StudentRecipe(encoder_layers=2)).parameters())
    assert found.student_parameters == own
    assert 0 < stage.trained_parameters <= own
    assert stage.tflop_a_clip > found.teacher_tflop_a_clip > 0
    assert stage.largest_batch_clips > 8
    whole = ctc_plan(folder, kind, 3)
    assert whole.stages[0].activation_gb_a_clip > stage.activation_gb_a_clip
    assert json.dumps(whole.as_json())


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_a_layer_of_a_ctc_model_costs_what_its_products_do(tmp_path, kind):
    three, two = (ctc_plan(tmp_path / kind, kind, n).stages[0].tflop_a_clip * 1e12 for n in (3, 2))
    positions = open_family(tmp_path / kind).positions(round(10.9 * 16000))
    width, inner = TINY["hidden_size"], TINY["intermediate_size"]
    products = 6 * (4 * width * width + 2 * width * inner) * positions
    # two products forward, five backward, whose first makes the scores again
    attention = 14 * positions * positions * width
    assert three - two == pytest.approx(products + attention, rel=1e-6)


CONSTANT = {"name": "fixed", "alpha": 0.0}  # a Whisper predicts other tokens than a CTC head


def over_whisper(student, weighting=CONSTANT, teacher="openai/whisper-tiny"):
    encoder = {
        "trainable": "encoder",
        "epochs": 1,
        "learning_rate": 1e-4,
        "encoder_matching": 1.0,
        "decoder_losses": False,
    }
    stages = {
        "encoder": encoder,
        "all": {"trainable": "all", "epochs": 1, "learning_rate": 1e-4, "weighting": weighting},
    }
    content = {"output": "x", "teacher": teacher, "stages": stages, "student": student}
    return plan(parse_recipe(content, "test"), "l4-24gb", 1, 10, 20.0, 0.35)


def test_a_whispers_encoder_with_a_ctc_head_costs_the_encoder_and_the_head(caplog):
    caplog.set_level("INFO", "workbench")
    with_head, with_decoder = (over_whisper(student) for student in ({"ctc": "characters"}, {}))
    alone, all_of_it = (stage.tflop_a_clip * 1e12 for stage in with_head.stages)
    assert alone == pytest.approx(with_decoder.stages[0].tflop_a_clip * 1e12)
    assert all_of_it - alone == pytest.approx(6 * 384 * 257 * round(20.9 * 50), rel=1e-6)
    assert with_head.student_parameters < with_decoder.student_parameters / 2
    assert "student.ctc: estimated with 256 tokens" in caplog.text
    with pytest.raises(UserError, match="does not predict the student's tokens"):
        over_whisper({"ctc": "bytes"}, {"name": "adakd"})


def test_a_ctc_teachers_pass_and_targets_are_those_of_its_frames(tmp_path):
    found = ctc_plan(tmp_path / "a", "wav2vec2", 2)
    family = open_family(tmp_path / "a")
    model, samples = family.load(), 160_000
    features = family.features([np.zeros(samples, np.float32)], 10.0)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        family.logits(model, family.encode(model, features), None)
    # of three layers, which torch's counter leaves out on the CPU
    attention = 3 * 4 * family.positions(samples) ** 2 * TINY["hidden_size"]
    assert found.teacher_tflop_a_clip * 1e12 == pytest.approx(counter.get_total_flops() + attention, rel=1e-6)
    # 0.2 s: the shortest silence after a clip in training, by default
    clips, tokens = 3600, len(family.ctc_tokens.pieces)
    on_disk = family.positions(samples + 3200) * bytes_per_label("top_k", 32, 0, tokens) + audio_bytes([10.0])
    assert found.targets_gb == pytest.approx(clips * on_disk / 1e9)


@pytest.mark.parametrize("groups", [1, 4])
def test_the_gradients_of_a_convolution_cost_what_it_does(groups):
    layer = torch.nn.Conv1d(8, 8, 5, groups=groups, device="meta")
    forward, both = flop_counter(), flop_counter()
    with forward:
        out = layer(torch.zeros(2, 8, 30, device="meta", requires_grad=True))
    assert forward.get_total_flops() == 2 * 2 * 26 * 8 * (8 // groups) * 5
    with both:
        out.sum().backward()
    assert both.get_total_flops() == 2 * forward.get_total_flops()


def test_what_a_run_would_refuse_is_refused(tmp_path):
    for kind in ("wav2vec2", "parakeet"):
        write_checkpoint(tmp_path / kind, kind)
    other = str(tmp_path / "parakeet")
    with pytest.raises(UserError, match=r"init_from .* does not read waves"):
        ctc_plan(tmp_path / "wav2vec2", "wav2vec2", 2, student={"init_from": other})
    with pytest.raises(UserError, match=r"more_teachers: .* must share a tokenizer"):
        ctc_plan(tmp_path / "wav2vec2", "wav2vec2", 2, more_teachers=[other])
    with pytest.raises(UserError, match=r"init_from .* is a ctc model, the student a whisper one"):
        over_whisper({"init_from": other})
    with pytest.raises(UserError, match=r"init_from .* is neither a Whisper nor a Whisper encoder"):
        over_whisper({"init_from": other, "ctc": "bytes"})
    with pytest.raises(UserError, match="reads 128 mel bins, the teacher 80"):
        over_whisper({"init_from": "openai/whisper-large-v3", "ctc": "bytes"})


def test_what_such_a_student_cannot_be_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"student.ctc is bytes, but teacher .* is no Whisper"):
        ctc_plan(tmp_path / "a", "wav2vec2", 2, student={"ctc": "bytes"})
    stage = {"trainable": "all", "epochs": 1, "learning_rate": 1e-4}
    with pytest.raises(UserError, match="needs a decoder, which a student with a CTC head has not"):
        ctc_plan(tmp_path / "a", "wav2vec2", 2, {"s": {**stage, "on_policy": {"fraction": 0.5}}})
    with pytest.raises(UserError, match="intermediate_ctc"):
        ctc_plan(tmp_path / "a", "wav2vec2", 2, {"s": {**stage, "intermediate_ctc": {"layer": 7}}})


def test_an_early_layer_and_an_oracle_are_planned(tmp_path, caplog):
    caplog.set_level("INFO", "workbench")
    stage = {"trainable": "all", "epochs": 1, "learning_rate": 1e-4, "oracle_teacher": {}}
    plain, early = (
        ctc_plan(tmp_path / "a", "wav2vec2", 3, {"s": {**stage, **added}})
        for added in ({}, {"intermediate_ctc": {"layer": 0}})
    )
    assert early.stages[0].tflop_a_clip > plain.stages[0].tflop_a_clip  # the head runs twice
    assert "the training of the oracle teacher is not counted" in caplog.text
