"""Which weights of a Whisper a bundle's graphs multiply with, so that a quantized scheme rounds them (export/graphs)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from workbench.core.errors import UserError
from workbench.models.quantization import ExportedWeight, PrecisionPart
from workbench.models.whisper.forward.layers import as_whisper
from workbench.models.whisper.low_rank import ranks_of

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
ENCODER, DECODER = "model.encoder", "model.decoder"


def exported_weights(model: nn.Module, part: PrecisionPart) -> list[ExportedWeight]:
    """A Whisper's weights in the encoder's graph, or in our own runtime's decoder.

    The encoder's graph holds the decoder layers' cross-attention keys and values, too. Hugging Face's decoder computes them itself, in the
    decoder's scheme.

    Raises:
        UserError: the encoder has low-rank layers.
    """
    config = as_whisper(model).config
    if part == "decoder":
        return [*_decoder(config.decoder_layers)]
    if ranks_of(config):
        raise UserError(
            "the encoder has low-rank layers, which an export makes again from their product: what it will round is not known in training"
        )
    cross = [
        ExportedWeight(f"{DECODER}.layers.{i}.encoder_attn.{name}.weight", norm=f"{ENCODER}.layer_norm")
        for i in range(config.decoder_layers)
        for name in ("k_proj", "v_proj")
    ]
    return [*encoder_layers(config.encoder_layers), *cross]


def encoder_layers(count: int) -> Iterator[ExportedWeight]:
    """The weights of a Whisper encoder's layers."""
    for i in range(count):
        for name in (*(f"self_attn.{a}" for a in ATTENTION), "fc1", "fc2"):
            yield ExportedWeight(f"{ENCODER}.layers.{i}.{name}.weight", layer=i)


def _decoder(layers: int) -> Iterator[ExportedWeight]:
    for i in range(layers):
        prefix = f"{DECODER}.layers.{i}"
        for name in ATTENTION:
            # queries, keys and values are one product, as wide as all three
            joined = 1 if name == "out_proj" else 3
            yield ExportedWeight(f"{prefix}.self_attn.{name}.weight", i, joined, by_row=True)
        for name in ("encoder_attn.q_proj", "encoder_attn.out_proj", "fc1", "fc2"):
            yield ExportedWeight(f"{prefix}.{name}.weight", i, by_row=True)
    yield ExportedWeight(f"{DECODER}.embed_tokens.weight", tied=True, norm=f"{DECODER}.layer_norm", by_row=True)
