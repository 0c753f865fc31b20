"""Which kernels torch may take."""

import torch

from workbench.core.kernels import avoid_plans_per_shape, compiled


def test_attention_that_makes_a_plan_for_every_shape_is_off():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        avoid_plans_per_shape()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_compiling_leaves_out_the_analysis_that_fails_on_dynamic_shapes(monkeypatch):
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda module, **how: asked.update(how) or module)
    compiled(torch.nn.Identity())
    assert asked == {"dynamic": True, "options": {"triton.coalesce_tiling_analysis": False}}
    monkeypatch.setattr(torch._inductor, "list_options", list)  # a torch that has no such analysis
    compiled(torch.nn.Identity())
    assert asked == {"dynamic": True, "options": None}
