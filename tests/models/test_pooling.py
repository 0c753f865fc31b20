"""Encoder states pooled by two: the same in a batch as alone, in training, in the bundle, and in what is counted."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from export.assembly.build import export_bundle
from export.edge import Recognizer
from export.measurement.flops import encoder_flops, states_of
from tests.conftest import encode_for_decoder, tone
from workbench.config.sections import StudentRecipe
from workbench.core.errors import UserError
from workbench.models.whisper.decoding import greedy
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.passes import encode
from workbench.models.whisper.forward.pooling import pooled, pooled_mask
from workbench.models.whisper.students import build_student
from workbench.training.trainer import distill


@pytest.mark.parametrize("positions", [1, 2, 7, 8])
def test_two_neighbours_become_their_mean(positions):
    states = torch.randn(2, positions, 3)
    lengths = [positions, max(1, positions // 2)]
    attention_mask = torch.arange(positions)[None] < torch.tensor(lengths)[:, None]
    found = pooled(states, attention_mask)
    for row, own, length in zip(found, states, lengths, strict=True):
        expected = [own[i : min(i + 2, length)].mean(0) for i in range(0, length, 2)]
        torch.testing.assert_close(row[: len(expected)], torch.stack(expected))
    assert pooled_mask(attention_mask).sum(1).tolist() == [-(-length // 2) for length in lengths]
    torch.testing.assert_close(pooled(states)[0], found[0])


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
def test_a_pooling_encoder_reads_a_batch_as_its_clips(tiny_checkpoint, layers):
    family = Whisper(tiny_checkpoint)
    model = build_student(family.load(), StudentRecipe(pool_after=layers))
    features = family.features([tone(1.0), tone(0.5)], 1.3)  # 65 positions
    features[1, :, 66:] = 0.0  # what convolutions see behind the end of a clip alone
    attention_mask = torch.arange(65)[None] < torch.tensor([65, 33])[:, None]
    together = encode(model, features, attention_mask)
    assert together.shape[1] == 33
    alone = encode(model, features[1:, :, :66])
    torch.testing.assert_close(together[1, :17], alone[0], atol=1e-4, rtol=1e-4)
    without = encode(model, features)
    torch.testing.assert_close(together[0], without[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cache_encoder_states", [True, False])
def test_a_student_that_pools_is_trained_exported_and_counted(recipe, cache, tmp_path, cache_encoder_states):
    stages = recipe().model_dump(mode="json")["stages"]
    stages["decoder"]["cache_encoder_states"] = cache_encoder_states
    run = recipe(student={"decoder_layers": [0, 2], "pool_after": 1}, stages=stages)
    folder = distill(run)
    family = Whisper(folder)
    assert family.config.pool_after == 1
    bundle = export_bundle(folder, tmp_path / "bundle", ["fp32", "int8"])
    wave = tone(1.31)
    cross_kv = Recognizer(bundle, vad=False).model.cross_kv([wave])
    assert cross_kv[0].shape()[2] == states_of(json.loads((bundle / "config.json").read_text()), 86) == 43
    found = Recognizer(bundle, vad=False).transcribe(wave)
    states = encode(family.load(), family.features([wave], 1.71)).detach()
    limit = family.token_limit(1.31, "en")
    expected = greedy(family.load(), states, [family.prompt("en")], [limit], family.eos_token_id, family.suppress_tokens, family.begin_suppress_tokens)[0]  # fmt: skip
    assert list(found.tokens) == expected[: len(found.tokens)]
    assert found.looped or len(found.tokens) == len(expected)


@torch.no_grad()
def test_operations_are_those_that_torch_counts(tiny_checkpoint):
    model = build_student(Whisper(tiny_checkpoint).load(), StudentRecipe(pool_after=2))
    model.config._attn_implementation = "eager"
    features = torch.randn(1, 80, 302)
    features[:, :, -1] = 2.0
    with FlopCounterMode(display=False) as counter:
        encode_for_decoder(model, features)
    assert counter.get_total_flops() == encoder_flops(model.config.to_dict(), 151)


def test_pooling_after_more_layers_than_there_are_is_refused(tiny_checkpoint):
    with pytest.raises(UserError, match="pool_after is 4; the student has 3 encoder layers"):
        build_student(Whisper(tiny_checkpoint).load(), StudentRecipe(pool_after=4))
