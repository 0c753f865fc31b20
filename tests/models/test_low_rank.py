"""Encoder products as two thinner ones: the best of their rank, the same through a checkpoint, in training and in the bundle."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperForConditionalGeneration

from export.assembly.build import export_bundle
from export.edge import Recognizer
from export.measurement.flops import encoder_flops
from tests.conftest import encode_for_decoder, tone
from workbench.config.sections import StudentRecipe
from workbench.models.students import parameters
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.passes import encode
from workbench.models.whisper.low_rank import LowRank, factorize, merged_state_dict, ranks_of, rebuild_factors
from workbench.models.whisper.students import build_student
from workbench.training.trainer import distill


@pytest.fixture
def family(tiny_checkpoint):
    return Whisper(tiny_checkpoint)


@pytest.fixture
def features(family):
    return [family.features([tone(s) * a], s) for s, a in ((1.0, 1.0), (2.0, 0.3))]


def outputs_of(model, name, features):
    rows = []
    hook = model.model.encoder.layers.get_submodule(name).register_forward_hook(
        lambda _, __, out: rows.append(out.flatten(0, -2))
    )
    for given in features:
        encode(model, given)
    hook.remove()
    return torch.cat(rows).double()


@torch.no_grad()
def test_the_first_layer_keeps_the_share_of_variance_with_the_fewest_dimensions(family, features):
    model, share = family.load(), 0.9
    rows = outputs_of(model, "0.fc1", features)
    ranks = factorize(model, features, share)
    centred = rows - rows.mean(0)
    values = torch.linalg.svdvals(centred).square()
    least = int((values.cumsum(0) < share * values.sum()).sum()) + 1
    assert ranks["0.fc1"] == -(-least // 16) * 16
    # nothing before this layer differs, so what it puts out is the projection on its principal components
    assert not [n for n in ranks if n.startswith("0.self_attn")]
    mean = rows.mean(0)
    vectors = torch.linalg.svd(centred, full_matrices=False)[2][: ranks["0.fc1"]]
    expected = mean + centred @ vectors.T @ vectors
    torch.testing.assert_close(outputs_of(model, "0.fc1", features), expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_through_a_checkpoint_it_stays_the_same(family, features, tmp_path):
    model = family.load()
    ranks = factorize(model, features, 0.8)
    assert ranks
    expected = encode(model, features[0])
    model.save_pretrained(tmp_path, state_dict=merged_state_dict(model))
    plain = WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()  # transformers knows nothing of it
    torch.testing.assert_close(encode(plain, features[0]), expected, atol=1e-4, rtol=1e-4)
    again = rebuild_factors(plain)
    assert ranks_of(again.config) == ranks
    assert parameters(again) == parameters(model) < parameters(family.load())
    assert {n for n, m in again.model.encoder.layers.named_modules() if isinstance(m, LowRank)} == set(ranks)
    torch.testing.assert_close(encode(again, features[0]), expected, atol=1e-4, rtol=1e-4)
    # a student of fewer layers takes the ranks of those it keeps
    fewer = build_student(again, StudentRecipe(encoder_layers=[0, 2]))
    assert {n.split(".", 1)[1] for n in ranks_of(fewer.config) if n.startswith("1.")} == {
        n.split(".", 1)[1] for n in ranks if n.startswith("2.")
    }


def test_such_a_student_is_trained_exported_and_counted(recipe, cache, tmp_path):
    run = recipe(student={"decoder_layers": [0, 2], "encoder_low_rank_variance": 0.9})
    folder = distill(run)
    family = Whisper(folder)
    model = family.load()
    ranks = ranks_of(model.config)
    assert ranks
    assert json.loads((run.output / "scores.json").read_text())["student"]["parameters"] == parameters(model)
    bundle = export_bundle(folder, tmp_path / "bundle", ["fp32", "int8"])  # compares with torch
    assert Recognizer(bundle, "int8", vad=False).transcribe(tone(1.0)).tokens
    config = json.loads((bundle / "config.json").read_text())
    model.config._attn_implementation = "eager"
    given = torch.randn(1, 80, 300)
    given[:, :, -1] = 2.0
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encode_for_decoder(model, given)
    assert counter.get_total_flops() == encoder_flops(config, 150)
