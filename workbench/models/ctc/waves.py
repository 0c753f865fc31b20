"""The encoder of transformers' wav2vec2, HuBERT and WavLM, at the true length of every clip of a batch.

Features are [clips, 2, samples]: the waves, and 1 where a clip has samples of its own. transformers normalises the first convolution of the
base models over a batch's padding too, and leaves padding unmasked where a checkpoint's preprocessor has no attention mask; here a clip in a
batch gives what it gives by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.audio.decode import Wave

EPSILON = 1e-7  # of the variance, as in Wav2Vec2FeatureExtractor


def frames_of(config: Any, samples: int) -> int:
    """Frames of a wave of this many samples; at least 1."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return max(samples, 1)


def samples_of(config: Any, frames: int) -> int:
    """Most samples of a wave that has this many frames."""
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        frames = (frames - 1) * stride + kernel + stride - 1
    return frames


def samples_per_frame(config: Any) -> int:
    """Samples from one frame to the next."""
    return int(np.prod(config.conv_stride))


def wave_features(padded: Tensor, samples: Tensor, normalize: bool) -> Tensor:
    """Waves, each normalised over its own samples, and where they are. [clips, samples], int64 [clips] -> [clips, 2, samples]"""
    own = (torch.arange(padded.shape[1], device=padded.device) < samples[:, None]).float()
    waves = padded.float() * own
    if normalize:
        count = own.sum(1, keepdim=True).clamp(min=1)
        mean = waves.sum(1, keepdim=True) / count
        variance = ((waves - mean).square() * own).sum(1, keepdim=True) / count
        waves = (waves - mean) / (variance + EPSILON).sqrt() * own
    return torch.stack([waves, own], 1)


def padded_waves(waves: Sequence[Wave], samples: int) -> tuple[Tensor, Tensor]:
    """Waves padded with silence to a number of samples, and the samples of each. -> [clips, samples], int64 [clips]"""
    padded = torch.zeros(len(waves), samples)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave[:samples])
    return padded, torch.tensor([min(len(wave), samples) for wave in waves])


def encode_features(
    model: nn.Module, features: Tensor, attention_mask: Tensor | None = None, checkpointing: bool = False
) -> Tensor:
    """Run the encoder.

    Args:
        model: a Wav2Vec2ForCTC, HubertForCTC or WavLMForCTC in eval mode.
        features: [clips, 2, samples].
        attention_mask: which frames a clip has, bool [clips, frames]; all by default.
        checkpointing: compute a layer's activations again in the backward pass instead of keeping them.

    Returns:
        States [clips, frames, width], undefined at padding.
    """
    base = base_of(model)
    hidden = _convolved(base.feature_extractor.conv_layers, features).transpose(1, 2)  # [clips, frames, channels]
    projected = base.feature_projection(hidden)
    hidden = projected[0] if isinstance(projected, tuple) else projected  # HuBERT's returns the one alone
    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None
    with checkpointed(base.encoder.layers, checkpointing and torch.is_grad_enabled()):
        states: Tensor = base.encoder(hidden, attention_mask=attention_mask)[0]
    return states


def encode_features_with_early(
    model: nn.Module,
    features: Tensor,
    layer: int,
    attention_mask: Tensor | None = None,
    checkpointing: bool = False,
) -> tuple[Tensor, Tensor]:
    """`encode_features`, and in the same pass the states after an earlier layer, as the head would read them from there.

    Models with `do_stable_layer_norm` have a norm after their last layer, which the earlier states go through too; in the others, every
    layer ends with a norm of its own.
    """
    base = base_of(model)
    with output_of(base.encoder.layers[layer]) as found:
        states = encode_features(model, features, attention_mask, checkpointing)
    early: Tensor = base.encoder.layer_norm(found[0]) if base.config.do_stable_layer_norm else found[0]
    return states, early


@contextmanager
def output_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The states that a layer gives inside, once it has run."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _given: object, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()  # a checkpointed layer runs again in the backward pass


def base_of(model: nn.Module) -> Any:
    """The model without its head."""
    return getattr(model, str(model.base_model_prefix))


def _convolved(layers: Sequence[Any], features: Tensor) -> Tensor:
    """The convolutions over the waves. [clips, 2, samples] -> [clips, channels, frames]"""
    hidden, lengths = features[:, :1], features[:, 1].sum(1)
    shortest = 1  # samples of one frame
    for layer in reversed(list(layers)):
        shortest = (shortest - 1) * layer.conv.stride[0] + layer.conv.kernel_size[0]
    hidden = torch.nn.functional.pad(hidden, (0, max(0, shortest - hidden.shape[-1])))
    padded = bool((lengths < hidden.shape[-1]).any())
    for layer in layers:
        norm = getattr(layer, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm) and padded:
            hidden = layer.conv(hidden)
            frames = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
            hidden = layer.activation(_normed(hidden, frames.clamp(min=1), norm))
        else:
            hidden = layer(hidden)
    return hidden


def _normed(hidden: Tensor, frames: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A norm of each channel over the frames that lie in a clip's own samples. hidden: [clips, channels, frames]"""
    valid = (torch.arange(hidden.shape[2], device=hidden.device) < frames[:, None]).float()[:, None]
    wide = hidden.float()
    mean = (wide * valid).sum(2, keepdim=True) / frames[:, None, None]
    variance = ((wide - mean).square() * valid).sum(2, keepdim=True) / frames[:, None, None]
    out = (wide - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None] + norm.bias[:, None]
    return out.to(hidden.dtype)


@contextmanager
def checkpointed(layers: Any, on: bool) -> Iterator[None]:
    """Temporarily have transformers' layers compute their activations again in the backward pass, which they do in training mode alone."""
    if not on:
        yield
        return
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    for layer in layers:
        layer.gradient_checkpointing, layer.training = (
            True,
            True,
        )  # the layer's own flag: its parts stay without dropout
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing, layer.training = False, False
