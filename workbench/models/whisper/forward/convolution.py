"""A convolution over time as a matrix product, so that the CPU keeps nothing of each new length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolve(layer: nn.Conv1d, inputs: Tensor) -> Tensor:
    """Apply the layer. [clips, channels, frames] -> [clips, channels, frames / stride]

    torch's own convolution on a CPU makes machine code for every shape of its operands and leaks some of it (torch 2.13,
    oneDNN 3.12: 25 kB a shape, besides what its cache keeps), and hardly two training steps have the same shapes. The
    product with the unfolded frames takes as long. Compiled graphs keep the convolution.
    """
    if inputs.device.type != "cpu" or torch.compiler.is_compiling():
        out: Tensor = layer(inputs)
        return out
    width, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    windows = F.pad(inputs, (padding, padding)).unfold(2, width, stride)  # [clips, channels, frames, width]
    rows = windows.transpose(1, 2).flatten(2)  # [clips, frames, channels * width]
    return F.linear(rows, layer.weight.flatten(1), layer.bias).transpose(1, 2)
