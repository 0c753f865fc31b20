"""What needs a CUDA device. The same code runs on the CPU in the other tests."""

import json

import pytest
import torch

from tests.conftest import DECODER
from workbench.core.machine.kernels import choose_cuda_kernels
from workbench.core.machine.memory import peak_of
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.passes import encode
from workbench.training.trainer import distill
from workbench.weighting import known_weightings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(autouse=True)
def kernels():
    """As a run computes."""
    choose_cuda_kernels()


@torch.no_grad()
def test_the_encoder_on_cuda_is_the_encoder_on_the_cpu(tiny_checkpoint):
    family = Whisper(tiny_checkpoint)
    model, waves = family.load(), [torch.randn(16000).numpy() * 0.1]
    expected = encode(model, family.features(waves, 1.2))
    found = encode(model.cuda(), family.features(waves, 1.2, "cuda"))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_padding_behind_a_mask_on_cuda_is_padding_left_out_on_the_cpu(tiny_checkpoint):
    family = Whisper(tiny_checkpoint)
    model = family.load()
    features = family.features([torch.randn(48_000).numpy() * 0.1] * 2, 3.0)
    attention_mask = torch.arange(150)[None] < torch.tensor([[150], [40]])
    expected = encode(model, features, attention_mask)
    found = encode(model.cuda(), features.cuda(), attention_mask.cuda()).cpu()
    torch.testing.assert_close(found[attention_mask], expected[attention_mask], atol=1e-3, rtol=1e-3)


def test_work_that_does_not_fit_is_told_from_work_that_does():
    device = torch.device("cuda")
    fits = peak_of(lambda: torch.empty(1 << 26, device=device), device)
    assert fits is not None
    assert not fits.failed
    assert fits.used >= 1 << 28  # fp32
    too_much = peak_of(lambda: torch.empty(1 << 44, device=device), device)
    assert too_much is not None
    assert too_much.failed


@pytest.mark.parametrize("name", known_weightings())
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_weighting_trains_on_cuda(recipe, name, precision):
    options = {
        "almkd": {"start_epoch": 0, "update_every": 1},
        "amal": {"start_epoch": 0, "update_every": 1},
        "askd": {"phase1": 0.4},
    }.get(name, {})
    stage = {**DECODER, "trainable": "all", "weighting": {"name": name, **options}}
    distill(recipe(stages={"all": stage}, precision=precision))


@pytest.mark.parametrize("method", ["gkd", "speculative"])
def test_on_policy_targets_on_cuda(recipe, method):
    student = {"decoder_layers": [0, 2], "vocabulary": "corpus"}
    distill(recipe(student=student, stages={"decoder": {**DECODER, "on_policy": {"method": method}}}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_on_cuda_finishes(recipe, tmp_path, precision, compiled):
    stage = {
        "trainable": "all",
        "epochs": 1,
        "learning_rate": 1e-3,
        "encoder_matching": 1.0,
        "weighting": {"name": "adakd"},
    }
    distill(recipe(student={}, stages={"all": stage}, precision=precision, compile=compiled))
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if '"loss"' in line
    ]
    assert all(0 < loss < 1e4 for loss in losses)
