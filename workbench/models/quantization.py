"""How a bundle's graphs round weights, as functions of tensors: what training rounds with is what is exported.

The tied embedding is rounded here for the exporter, too (export/quantization). The other matrices are rounded by onnxruntime's quantizers there
and, to the same bits, here (tests/training/test_quantization.py compares them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PrecisionPart = Literal["encoder", "decoder"]  # of a precision, whose scheme a weight is exported in
BLOCK = 32  # weights that share a scale in w8 and q4
BITS = {"w8": 8, "q4": 4}
CLIPPED = tuple(
    0.6 + 0.025 * i for i in range(17)
)  # clipping ratios to try with 4 bits, relative to a block's largest weight
ROWS = 256  # of a matrix, searched at a time on a CPU, so that they stay in its cache
SMALLEST = 1e-12  # of a largest weight, so that no scale is zero
HALF_BYTES = 4096  # fp32 weights of a quantized graph that take as much are stored in fp16, and so are scales
HALF_LARGEST = 6e4  # just below the largest fp16 value


@dataclass(frozen=True)
class ExportedWeight:
    """A weight that is the constant of a matrix product in a bundle's graphs, which a quantized scheme rounds."""

    name: str  # of the parameter, [outputs, inputs]
    layer: int | None = None  # number by which a scheme can leave it in fp32
    joined: int = 1  # how many such matrices one product of the graph holds: their scales are stored together
    tied: bool = False  # whether it is an embedding, too
    # a module whose outputs this product reads, where they may be read without calling the weight's own module
    norm: str | None = None
    by_row: bool = False  # whether the product is called for one position after another, and not for a whole clip
    inside: bool = (
        False  # whether torch computes the product inside a larger function, where its inputs cannot be rounded
    )


def rounded(
    weight: Tensor, scheme: str, exported: ExportedWeight, importance: Tensor | None = None, reduce_range: bool = False
) -> Tensor:
    """The values that a graph in a scheme computes with instead of a weight's.

    Args:
        weight: fp32 [outputs, inputs].
        scheme: `int8`, `w8` or `q4`.
        exported: how it is exported.
        importance: for a tied weight in q4, mean square of each input of the projection [inputs]; all alike by default.
        reduce_range: int8 with 7 bits.

    Returns:
        fp32 [outputs, inputs].
    """
    if scheme == "int8":
        quantized, scales = tied_rows(weight, reduce_range) if exported.tied else _channels(weight, reduce_range)
        return quantized * _stored(scales, exported.joined)[:, None]
    bits = BITS[scheme]
    if exported.tied:
        quantized, scales = tied_blocks(weight, bits, importance)
    else:
        quantized, scales = _blocks(weight, bits)
    return (quantized * _stored(scales, exported.joined)[..., None]).flatten(1)[:, : weight.shape[1]]


def rounded_inputs(inputs: Tensor, by_row: bool) -> Tensor:
    """Inputs of a product in dynamic int8 (ONNX's DynamicQuantizeLinear): 256 levels from the smallest value, or 0, to the largest, or 0.

    Args:
        inputs: [clips, positions, width] or [positions, width].
        by_row: a range for each position, as in a decoder that is called for each token; else for each clip, or where clips are not
            apart for all of them.

    Returns:
        The same shape and type.
    """
    values = inputs.float()
    axes = (-1,) if by_row else (-2, -1)
    smallest, largest = values.amin(axes, keepdim=True).clamp(max=0), values.amax(axes, keepdim=True).clamp(min=0)
    scale = (largest - smallest) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = (-smallest / scale).round()
    return (((values / scale).round() + zero).clamp(0, 255) - zero).mul(scale).to(inputs.dtype)


def tied_rows(rows: Tensor, reduce_range: bool = False) -> tuple[Tensor, Tensor]:
    """An embedding's int8 values [rows, width], and a scale for each row [rows]."""
    scales = rows.abs().amax(1).clamp(min=SMALLEST) / (63 if reduce_range else 127)
    return (rows / scales[:, None]).round(), scales


def tied_blocks(rows: Tensor, bits: int, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """An embedding in symmetric blocks.

    With 4 bits, each block's scale, which may be negative, is chosen from a grid to minimize the weighted squared error.

    Args:
        rows: fp32 [outputs, inputs].
        bits: 8 or 4.
        importance: [inputs], weights of the inputs in that error: the mean square of each input.

    Returns:
        Signed values [outputs, blocks, BLOCK], and scales [outputs, blocks].
    """
    middle = 1 << (bits - 1)
    blocks = rows.unflatten(1, (-1, BLOCK))
    if bits == 4:
        counts = rows.new_ones(rows.shape[1]) if importance is None else importance
        parts = blocks.split(ROWS) if rows.device.type == "cpu" else [blocks]
        scales = torch.cat([_least_squares(part, counts.view(-1, BLOCK)) for part in parts])
    else:
        scales = blocks.abs().amax(2).clamp(min=SMALLEST) / (middle - 1)
    return (blocks / scales[..., None]).round().clamp(-middle, middle - 1), scales


def _least_squares(blocks: Tensor, importance: Tensor) -> Tensor:
    """4-bit scales (levels -8 to 7) of least squared error. [outputs, blocks, weights], [blocks, weights] -> [outputs, blocks]"""
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))[..., 0]
    largest = torch.where(largest.abs() < SMALLEST, torch.full_like(largest, SMALLEST), largest)
    best, least, off = largest, torch.full_like(largest, torch.inf), torch.empty_like(blocks)
    for end in (-8, 7):
        for share in CLIPPED:
            scales = largest * (share / end)
            # in place: this loop is most of what rounding costs
            torch.div(blocks, scales[..., None], out=off)
            off.round_().clamp_(-8, 7).mul_(scales[..., None]).sub_(blocks)
            difference = off.square_().mul_(importance).sum(2)
            closer = difference < least
            best, least = torch.where(closer, scales, best), torch.where(closer, difference, least)
    return best


def _channels(weight: Tensor, reduce_range: bool) -> tuple[Tensor, Tensor]:
    """Symmetric int8 as onnxruntime makes it, with a scale for each output. -> values [outputs, inputs], scales [outputs]"""
    scales = weight.abs().amax(1) / (64 if reduce_range else 127)
    scales = torch.where(scales < torch.finfo(scales.dtype).tiny, torch.ones_like(scales), scales)
    return (weight / scales[:, None]).round().clamp(-128, 127), scales


def _blocks(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """MatMulNBits's blocks with zero points, as onnxruntime makes them. -> values less zero points [outputs, blocks, BLOCK], scales [outputs, blocks]"""
    levels = (1 << bits) - 1
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK))
    smallest, largest = blocks.amin(2).clamp(max=0), blocks.amax(2).clamp(min=0)
    scales = (largest - smallest) / levels
    zero = scales == 0
    points = _half_away(torch.where(zero, smallest, -smallest / scales)).clamp(0, levels)
    inverse = torch.where(zero, scales, 1 / scales)
    values = _half_away(blocks * inverse[..., None] + points[..., None]).clamp(0, levels)
    return values - points[..., None], scales


def _half_away(values: Tensor) -> Tensor:
    """Rounded as C's roundf does, halves away from zero; for values that are clamped to 0 and more."""
    whole = values.trunc()
    return whole + (values - whole >= 0.5)


def _stored(scales: Tensor, joined: int) -> Tensor:
    """Scales as they come from the file: those of a large enough matrix are stored in fp16."""
    if 4 * scales.numel() * joined < HALF_BYTES:
        return scales
    return torch.where(scales.abs().amax() > HALF_LARGEST, scales, scales.half().float())
