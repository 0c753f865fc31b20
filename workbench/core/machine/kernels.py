"""How torch's kernels are chosen and compiled, given that hardly two training steps have the same shapes."""

from __future__ import annotations

from typing import Any

import torch


def choose_cuda_kernels() -> None:
    """Let CUDA compute attention without cuDNN, and convolutions in fp32 where fp32 is asked for; for the whole process.

    torch prefers cuDNN's attention in bf16 on Hopper and newer, and cuDNN makes a plan for every new shape. Training in bf16 took
    five times as long as in fp32, probably for that reason (docs/results/gpu). FlashAttention and the memory-efficient kernels
    need no plans. torch's default for convolutions is TF32, which has fp16's precision.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cudnn.allow_tf32 = False


def compiled(module: torch.nn.Module) -> Any:
    """A module that torch compiles once for all lengths.

    Inductor's analysis of tilings does not apply to dynamic shapes, but runs on them and fails on some (pytorch/pytorch#181563).
    """
    analysis = "triton.coalesce_tiling_analysis"
    known = torch._inductor.list_options()  # as torch.compile's own documentation recommends
    return torch.compile(module, dynamic=True, options={analysis: False} if analysis in known else None)
