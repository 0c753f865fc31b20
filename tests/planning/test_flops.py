"""Counted operations against torch's own counter."""

import json

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, EncoderDecoderCache

from export.measurement.flops import encoder_flops, token_flops
from tests.conftest import encode_for_decoder
from workbench.models.whisper.family import Whisper


@torch.no_grad()
def test_operations_are_those_that_torch_counts(tiny_checkpoint):
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    model = Whisper(tiny_checkpoint).load()
    model.config._attn_implementation = "eager"  # SDPA's products are not counted on a CPU
    features = torch.randn(1, 80, 300)
    features[:, :, -1] = 2.0  # nothing is cut off its end
    with FlopCounterMode(display=False) as counter:
        encode_for_decoder(model, features)
    assert counter.get_total_flops() == encoder_flops(config, 150)
    states = torch.randn(1, 150, 32)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    model.model.decoder(torch.tensor([[1, 2, 3]]), None, states, cache, use_cache=True)
    with FlopCounterMode(display=False) as counter:
        hidden = model.model.decoder(torch.tensor([[4]]), None, states, cache, use_cache=True).last_hidden_state
        model.proj_out(hidden)
    assert counter.get_total_flops() == token_flops(config, 150, before=3)
