"""Floating-point operations of a model, from its dimensions; a multiply-add counts as two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from export.edge.bundle.fields import Check, array, fields, integer, mapping, number, text
from export.edge.bundle.manifest import BundleError, Manifest, read_json
from workbench.core.errors import UserError
from workbench.models.ctc.parakeet_features import frames_of
from workbench.models.whisper.forward.log_mel import SAMPLES_PER_POSITION
from workbench.models.whisper.low_rank import ranks_of

LARGEST = 65_536  # of a width or length
SIZES = fields(
    d_model=integer(1, LARGEST),
    num_mel_bins=integer(1, 1024),
    encoder_layers=integer(1, 1024),
    decoder_layers=integer(1, 1024),
    encoder_ffn_dim=integer(1, LARGEST),
    decoder_ffn_dim=integer(1, LARGEST),
    max_source_positions=integer(1, LARGEST),
    vocab_size=integer(1, 1 << 20),
)
CTC_SIZES = fields(
    hidden_size=integer(1, LARGEST), intermediate_size=integer(1, LARGEST), num_hidden_layers=integer(1, 1024), vocab_size=integer(2, 1 << 20),
    num_mel_bins_=integer(1, LARGEST), num_conv_pos_embeddings_=integer(1, LARGEST), num_conv_pos_embedding_groups_=integer(1, LARGEST),
    max_bucket_distance_=integer(1, LARGEST),
)  # fmt: skip
_LAYERS = array(integer(1, LARGEST), 1, 16)
SHORTENING = fields(
    num_mel_bins=integer(2, LARGEST), subsampling_factor=integer(2, 64), subsampling_conv_channels=integer(1, LARGEST), conv_kernel_size=integer(1, LARGEST)
)  # fmt: skip
CONVOLUTIONS = fields(conv_dim=_LAYERS, conv_kernel=_LAYERS, conv_stride=_LAYERS)
OPTIONAL_SIZES = {"pool_after": number(0, 1024), "encoder_ranks": mapping(text, integer(1, LARGEST))}


class Sizes(TypedDict):
    """The fields of a checkpoint's or bundle's config.json that the counts are computed from; the file has more."""

    d_model: int
    num_mel_bins: int
    encoder_layers: int
    decoder_layers: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    max_source_positions: int
    vocab_size: int
    pool_after: NotRequired[float | None]  # number of encoder layers after which states are pooled, if they are
    encoder_ranks: NotRequired[dict[str, int] | None]  # by name, for layers that were factorized into two thinner ones


class CtcSizes(TypedDict):
    """The same of a bundle whose model has a CTC head: Whisper's encoder and Parakeet have mels, the others convolutions over the wave."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int
    num_mel_bins: NotRequired[int]
    conv_dim: NotRequired[list[int]]
    conv_kernel: NotRequired[list[int]]
    conv_stride: NotRequired[list[int]]
    num_conv_pos_embeddings: NotRequired[int]
    num_conv_pos_embedding_groups: NotRequired[int]
    max_bucket_distance: NotRequired[int]  # of WavLM
    adapter_attn_dim: NotRequired[int | None]  # of MMS: width of each layer's adapter
    subsampling_factor: NotRequired[int]  # of Parakeet: frames (10 ms) of a position
    subsampling_conv_channels: NotRequired[int]
    conv_kernel_size: NotRequired[int]


def sizes_of(manifest: Manifest) -> Sizes | CtcSizes:
    """Read a bundle's config.json and check its dimensions; raises UserError."""
    return read_ctc_sizes(manifest.folder) if manifest.has_ctc_head else read_sizes(manifest.folder)


def read_sizes(bundle: Path) -> Sizes:
    """The dimensions of a Whisper; raises UserError."""
    return cast("Sizes", _checked(bundle / "config.json", SIZES, OPTIONAL_SIZES))


def read_ctc_sizes(bundle: Path) -> CtcSizes:
    """The dimensions of a model with a CTC head; raises UserError."""
    path = bundle / "config.json"
    found = cast("CtcSizes", _checked(path, CTC_SIZES, {"adapter_attn_dim": integer(1, LARGEST)}))
    if "subsampling_factor" in found:
        _checked(path, SHORTENING, {})
    elif "num_mel_bins" not in found:
        _checked(path, CONVOLUTIONS, {})
        if len({len(found["conv_dim"]), len(found["conv_kernel"]), len(found["conv_stride"])}) > 1:
            raise UserError(f"{path}: conv_dim, conv_kernel and conv_stride differ in length; export the bundle again")
    return found


def _checked(path: Path, sizes: Check, optional: Mapping[str, Check]) -> Mapping[str, object]:
    try:
        config = read_json(path)
        sizes("configuration", config)
        found = cast("Mapping[str, object]", config)
        for field, check in optional.items():
            if (value := found.get(field)) is not None:
                check(field, value)
    except (BundleError, ValueError) as error:
        said = str(error)
        raise UserError(said if str(path) in said else f"{path}: {said}; export the bundle again") from None
    return found


def ctc_flops(config: CtcSizes, samples: int) -> int:
    """Operations of a model with a CTC head: convolutions, layers, head.

    Args:
        config: a bundle's config.json.
        samples: of the wave, the silence after it included.
    """
    width, ffn = config["hidden_size"], config["intermediate_size"]
    if "subsampling_factor" in config:
        return _parakeet_flops(config, samples)
    if "num_mel_bins" in config:  # a Whisper's encoder
        positions = -(-samples // SAMPLES_PER_POSITION)
        convolutions = 2 * 3 * width * (2 * positions * config["num_mel_bins"] + positions * width)
    else:
        convolutions, positions, channels = 0, samples, 1
        layers = zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True)
        for wide, kernel, stride in layers:
            positions = max((positions - kernel) // stride + 1, 1)
            convolutions += 2 * positions * wide * channels * kernel
            channels = wide
        kernel, groups = config.get("num_conv_pos_embeddings", 128), config.get("num_conv_pos_embedding_groups", 16)
        convolutions += 2 * positions * (channels * width + width * width * kernel // groups)
    layer = 2 * positions * (4 * width**2 + 2 * width * ffn) + 4 * positions**2 * width
    layer += 4 * positions * width * (config.get("adapter_attn_dim") or 0)
    if "max_bucket_distance" in config:
        layer += 4 * positions * width  # the two gates of each head
    return convolutions + config["num_hidden_layers"] * layer + 2 * positions * width * config["vocab_size"]


def _parakeet_flops(config: CtcSizes, samples: int) -> int:
    """The same of a Parakeet: its convolutions over time and bands, conformer layers, head."""
    width, ffn, channels = config["hidden_size"], config["intermediate_size"], config["subsampling_conv_channels"]
    frames, bands, convolutions, before = frames_of(samples), config["num_mel_bins"], 0, 0
    for _ in range(config["subsampling_factor"].bit_length() - 1):
        frames, bands = -(-frames // 2), bands // 2
        convolutions += 2 * frames * bands * channels * (9 + before)  # of each band by itself, and across channels
        before = channels
    projected = 2 * frames * channels * bands * width
    layer = 2 * frames * (4 * width * ffn + 7 * width**2 + width * config["conv_kernel_size"]) + 8 * frames**2 * width
    head = 2 * frames * width * config["vocab_size"]
    return convolutions + projected + config["num_hidden_layers"] * layer + head


def encoder_flops(config: Sizes, positions: int) -> int:
    """Operations of the convolutions, the encoder layers, and the decoder's cross-attention keys and values.

    Args:
        config: a checkpoint's or bundle's config.json.
        positions: encoder positions (20 ms each) before pooling.
    """
    width, ffn, mels = config["d_model"], config["encoder_ffn_dim"], config["num_mel_bins"]
    convolutions = 2 * 3 * width * (2 * positions * mels + positions * width)
    pools = int(config.get("pool_after") or config["encoder_layers"])
    ranks, read = ranks_of(config), states_of(config, positions)
    shapes = {
        **{f"self_attn.{p}_proj": (width, width) for p in ("q", "k", "v", "out")},
        "fc1": (width, ffn),
        "fc2": (ffn, width),
    }

    def layer(number: int) -> int:
        at = positions if number < pools else read
        weights = sum(
            ranks[name] * (a + b) if (name := f"{number}.{part}") in ranks else a * b for part, (a, b) in shapes.items()
        )
        return 2 * at * weights + 4 * at**2 * width

    crossed = int(config["decoder_layers"]) * 2 * (2 * read * width**2)
    return convolutions + sum(layer(i) for i in range(int(config["encoder_layers"]))) + crossed


def states_of(config: Sizes, positions: int) -> int:
    """Number of encoder states for a number of positions: half as many if the encoder pools."""
    return -(-positions // 2) if config.get("pool_after") else positions


def token_flops(config: Sizes, positions: int, before: int = 0) -> int:
    """Operations of one decoder step: one token after `before` others, attending to the states of `positions`, and the output projection."""
    positions = states_of(config, positions)
    width, ffn = int(config["d_model"]), int(config["decoder_ffn_dim"])
    layer = 2 * (6 * width**2 + 2 * width * ffn) + 4 * width * (positions + before + 1)
    return int(config["decoder_layers"]) * layer + 2 * width * int(config["vocab_size"])
