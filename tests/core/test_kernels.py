"""Which kernels torch may take."""

import torch

from workbench.core.machine.kernels import choose_cuda_kernels, compiled


def test_attention_makes_no_plan_for_every_shape_and_fp32_is_not_tf32():
    before = torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cudnn.allow_tf32
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cudnn.allow_tf32 = True
    try:
        choose_cuda_kernels()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_compiling_leaves_out_the_analysis_that_fails_on_dynamic_shapes(monkeypatch):
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda module, **how: asked.update(how) or module)
    compiled(torch.nn.Identity())
    assert asked == {"dynamic": True, "options": {"triton.coalesce_tiling_analysis": False}}
    monkeypatch.setattr(torch._inductor, "list_options", list)  # a torch that has no such analysis
    compiled(torch.nn.Identity())
    assert asked == {"dynamic": True, "options": None}
