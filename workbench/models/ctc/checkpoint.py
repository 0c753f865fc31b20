"""Checkpoint folders of transformers' Wav2Vec2ForCTC, HubertForCTC and WavLMForCTC: checked before any of it is used.

As for Whisper (whisper/loading/checkpoint.py), no file may name code, the configuration is built from values of the types and bounds that
are checked here, and weights are read from safetensors alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench.core.errors import UserError, last_line
from workbench.core.files import read_object
from workbench.models.whisper.loading.checkpoint import check_settings, feature_settings
from workbench.models.whisper.loading.weights import opened, some_of, weight_files

CLASSES = {
    "tokenizer_class": ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer"),
    "processor_class": ("Wav2Vec2Processor", "Wav2Vec2ProcessorWithLM"),
    "feature_extractor_type": ("Wav2Vec2FeatureExtractor",),
    "feature_extractor_class": ("Wav2Vec2FeatureExtractor",),
}
ACTIVATIONS = ("gelu", "relu", "silu", "swish", "gelu_new")
LISTS = ("conv_dim", "conv_stride", "conv_kernel")
# Largest values, several times those of the largest published model (XLS-R 2B: width 1920, 48 layers)
MOST = {"hidden_size": 8_192, "num_hidden_layers": 128, "num_attention_heads": 128, "intermediate_size": 65_536,
        "vocab_size": 100_000, "num_feat_extract_layers": 16, "num_conv_pos_embeddings": 1_024,
        "num_conv_pos_embedding_groups": 1_024, "adapter_attn_dim": 8_192, "num_buckets": 10_000, "max_bucket_distance": 100_000,
        "num_mel_bins": 512, "conv_kernel_size": 1_023, "subsampling_factor": 64, "subsampling_conv_channels": 8_192}  # fmt: skip
MAX_OTHERS, MAX_CHANNELS = 100_000, 8_192
# parts of a model's name in older files, whose weight norm had other names
RENAMED = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
MASK = "masked_spec_embed"  # what SpecAugment replaces frames with; not every checkpoint has it


def architecture(kind: str) -> tuple[type[Any], type[Any]]:
    """The configuration and model that transformers has of a `model_type`."""
    import transformers

    return {
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2ForCTC),
        "hubert": (transformers.HubertConfig, transformers.HubertForCTC),
        "wavlm": (transformers.WavLMConfig, transformers.WavLMForCTC),
    }[kind]


def check_ctc_checkpoint(folder: Path) -> tuple[Any, bool]:
    """Check a folder, all but its vocabulary and the values of its weights.

    Returns:
        transformers' configuration, and whether each clip is brought to zero mean and unit variance. The preprocessor's
        `return_attention_mask` makes no difference here: what is padding is masked in every model, so that a clip in a batch is read as by itself.

    Raises:
        UserError: a file is missing or names code, a value does not fit, the model has no CTC head, or weights and
            configuration do not match.
    """
    check_settings(folder, CLASSES)
    path = folder / "config.json"
    config = checked_config(read_object(path, "a checkpoint's configuration"), path)
    check_has_features(folder)
    source, settings = feature_settings(folder)
    for key, expected in (("sampling_rate", 16_000), ("feature_size", 1)):
        if settings.get(key, expected) != expected:
            raise UserError(f"{source}: {key} is {str(settings[key])[:60]}; expected {expected}")
    normalize = settings.get("do_normalize", True)
    if not isinstance(normalize, bool):
        raise UserError(f"{source}: do_normalize is {str(normalize)[:60]}; expected true or false")
    check_tensors(folder, lambda: architecture(config.model_type)[1](config))
    return config, normalize


def check_has_features(folder: Path) -> None:
    """Raise UserError if no file says how a checkpoint reads waves."""
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise UserError(
            f"{folder}: lacks preprocessor_config.json (or processor_config.json), which says how it reads waves; copy the original checkpoint's"
        )


def checked_config(content: dict[str, Any], path: Path) -> Any:
    """A configuration all of whose values have the right type and are within bounds; other keys are left out. Raises UserError."""
    kind = content["model_type"]
    config_class, model_class = architecture(kind)
    check_has_head(content, model_class.__name__, path)
    if content.get("adapter_attn_dim") is not None and not (kind == "wav2vec2" and content.get("do_stable_layer_norm")):
        raise UserError(
            f"{path}: adapter_attn_dim is set, but only wav2vec2 models with do_stable_layer_norm, such as MMS, have these adapters"
        )
    if content.get("add_adapter"):
        raise UserError(
            f"{path}: add_adapter is true: it shortens the frames after the encoder, which is not supported"
        )
    values = checked_values(config_class, content, path)
    try:
        config = config_class(**(values | {"attn_implementation": "eager" if kind == "wavlm" else "sdpa"}))
    except Exception as error:  # noqa: BLE001  # it checks its settings with errors of several kinds
        raise UserError(f"{path}: transformers rejects it: {last_line(str(error))}") from None
    config.architectures = [model_class.__name__]
    if config.hidden_size % config.num_attention_heads or config.hidden_size % config.num_conv_pos_embedding_groups:
        raise UserError(
            f"{path}: hidden_size is {config.hidden_size}; expected a multiple of the attention heads and of num_conv_pos_embedding_groups"
        )
    check_blank(config, path)
    return config


def check_has_head(content: dict[str, Any], architecture: str, path: Path) -> None:
    """Raise UserError for a configuration of another model than that with a CTC head."""
    if (named := content.get("architectures") or []) != [architecture]:
        raise UserError(f"{path}: architectures is {str(named)[:60]}; expected ['{architecture}']: it has no CTC head")


def checked_values(config_class: type[Any], content: dict[str, Any], path: Path, within: str = "") -> dict[str, Any]:
    """The settings that a configuration takes, checked; `within`: what stands before their keys in messages. Raises UserError."""
    defaults = {
        name: p.default for name, p in inspect.signature(config_class.__init__).parameters.items()
        if name in config_class.__annotations__
    }  # fmt: skip
    values = {key: content[key] for key in defaults if key in content}
    for key, value in values.items():
        check_value(path, key, value, defaults[key], within)
    # JSON writes 0 for 0.0, and transformers wants a float where one is the default
    return {key: float(value) if isinstance(defaults[key], float) else value for key, value in values.items()}


def check_blank(config: Any, path: Path) -> None:
    """Raise UserError if the blank is no token of the model."""
    if not isinstance(config.pad_token_id, int) or not 0 <= config.pad_token_id < config.vocab_size:
        raise UserError(
            f"{path}: pad_token_id, the blank, is {config.pad_token_id}; expected a token below {config.vocab_size:,}"
        )


def check_value(path: Path, key: str, value: object, default: object, within: str = "") -> None:
    """Raise UserError for a value of config.json that is of another type than its default, or out of bounds."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits, expected = True, ""
    if key in LISTS:
        fits = isinstance(value, list) and len(value) <= 16 and all(isinstance(v, int) and 1 <= v <= MAX_CHANNELS for v in value)  # fmt: skip
        expected = "a list of at most 16 whole numbers"
    elif key == "feat_extract_norm":
        fits, expected = value in ("group", "layer"), "group or layer"
    elif key in ("hidden_act", "feat_extract_activation"):
        fits, expected = value in ACTIVATIONS, " or ".join(ACTIVATIONS)
    elif key == "adapter_attn_dim":
        fits, expected = (
            value is None or (whole and 1 <= int(str(value)) <= MOST[key]),
            f"a whole number from 1 to {MOST[key]:,}",
        )
    elif key.endswith("token_id"):
        fits, expected = value is None or whole, "a token"
    elif isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, float):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1000
        expected = "a number from 0 to 1000"
    elif isinstance(default, int):
        most, least = MOST.get(key, MAX_OTHERS), 1 if key in MOST else 0
        fits, expected = whole and least <= int(str(value)) <= most, f"a whole number from {least} to {most:,}"
    if not fits:
        raise UserError(f"{path}: {within}{key} is {repr(value)[:60]}; expected {expected}")


def check_tensors(folder: Path, build: Callable[[], nn.Module]) -> None:
    """Raise UserError if a folder's tensors are not those of a model; no value is read."""
    with torch.device("meta"):
        expected = {name: list(value.shape) for name, value in build().state_dict().items()}
    found: dict[str, list[int]] = {}
    for path in weight_files(folder):
        with opened(path) as file:
            found |= {_renamed(key): list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    problems = {
        "missing": sorted(name for name in set(expected) - set(found) if not name.endswith(MASK)),
        "of another shape": sorted(name for name, shape in expected.items() if found.get(name, shape) != shape),
    }
    if any(problems.values()):
        said = "; ".join(f"{len(names)} tensors {what}: {some_of(names)}" for what, names in problems.items() if names)
        raise UserError(
            f"{folder}: weights and config.json do not match ({said}); download or save the checkpoint again"
        )


def load_tensors(folder: Path, model: nn.Module) -> None:
    """Fill a model with a folder's weights in fp32; raises UserError where they hold NaN or infinity, or do not fit."""
    wanted, state = model.state_dict(), {}
    for path in weight_files(folder):
        with opened(path) as file:
            for key in file.keys():  # noqa: SIM118  # no dictionary
                if (name := _renamed(key)) not in wanted:
                    continue
                state[name] = file.get_tensor(key).to(torch.float32, copy=True)
                if not state[name].isfinite().all():
                    raise UserError(
                        f"{path}: tensor {key} holds NaN or infinity; the training that made it diverged, take an earlier checkpoint"
                    )
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise UserError(f"{folder}: weights and config.json do not match ({last_line(str(error))})") from None
    if left := [name for name in missing if not name.endswith(MASK)]:
        raise UserError(f"{folder}: lacks {some_of(left)}; download the checkpoint again")


def _renamed(key: str) -> str:
    for old, new in RENAMED.items():
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key
