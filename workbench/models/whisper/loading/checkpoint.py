"""The checks on a checkpoint folder before any of it is used: every file may be untrusted or damaged.

A transformers folder can name code to be loaded, a kernel or a module; nothing that names code is accepted, and the configuration
is built from the keys that are checked here, never passed to transformers unchecked.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from workbench.core.errors import UserError, first_line, last_line
from workbench.core.files import check_not_lfs_pointer, read_json, read_object
from workbench.models.whisper.low_rank import check_ranks

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig

REQUIRED = ("config.json", "generation_config.json", "tokenizer.json")
# Where a checkpoint says how its features are computed: transformers 4 wrote the first, a processor of transformers 5 writes the second.
FEATURES_FILES = ("preprocessor_config.json", "processor_config.json")
# Keys whose value names code: kernels, modules, quantizers with code of their own. Any key that contains one of these counts.
NAMES_CODE = ("attn_implementation", "experts_implementation", "auto_map", "quantization_config", "custom_generate",
              "custom_pipeline", "kernel")  # fmt: skip
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flex_attention")  # transformers' own names, which checkpoints carry
TABLES = (
    "tokenizer.json",
    "vocab.json",
    "added_tokens.json",
    "normalizer.json",
    "pieces.json",
)  # vocabularies, in which any word may be a key
NAMES_FILE = ("tokenizer_file", "vocab_file", "merges_file", "normalizer_file", "gguf_file")
CLASSES = {
    "tokenizer_class": ("WhisperTokenizer", "WhisperTokenizerFast"),
    "processor_class": ("WhisperProcessor",),
    "feature_extractor_type": ("WhisperFeatureExtractor",),
    "feature_extractor_class": ("WhisperFeatureExtractor",),
}
# Largest values of config.json, several times those of Whisper large-v3; `POSITIONS` is exact: the window is 30 s.
MOST = {
    "vocab_size": 1_000_000, "num_mel_bins": 256, "encoder_layers": 128, "decoder_layers": 128, "encoder_attention_heads": 128,
    "decoder_attention_heads": 128, "encoder_ffn_dim": 65_536, "decoder_ffn_dim": 65_536, "d_model": 8_192, "max_target_positions": 8_192,
}  # fmt: skip
MAX_OTHERS = 100_000
MAX_PARAMETERS = 5_000_000_000  # three times those of Whisper large-v3; 20 GB in fp32
POSITIONS = 1500
FEATURES = {"sampling_rate": 16_000, "hop_length": 160, "n_fft": 400, "chunk_length": 30}
# kept of config.json beside Whisper's own keys
OURS = ("encoder_ranks", "pool_after", "tie_word_embeddings", "architectures")


def check_checkpoint(folder: Path) -> WhisperConfig:
    """Check a Whisper checkpoint folder in the transformers format, all but its tokenizer and the values of its weights.

    Returns:
        Its configuration, made of checked values alone.

    Raises:
        UserError: a file is missing, a Git LFS pointer, not the JSON expected, or names code; a value is of another type or beyond its
            bound; the weights are cut off, pickled, an adapter's, or do not fit config.json.
    """
    from workbench.models.whisper.loading.weights import check_weights

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a transformers Whisper checkpoint")
    check_settings(folder)
    config = checked_config(read_object(folder / "config.json", "a checkpoint's configuration"), folder / "config.json")
    check_files(folder)
    source, features = feature_settings(folder)
    for key, expected in {**FEATURES, "feature_size": config.num_mel_bins}.items():
        if features.get(key, expected) != expected:
            raise UserError(f"{source}: {key} is {_short(features[key])}; Whisper's features have {expected}")
    generation_config(folder, config)
    check_weights(folder, config)
    return config


def check_files(folder: Path) -> None:
    """Raise UserError if a checkpoint folder is another model's, or lacks a file that every use of it needs."""
    if (folder / "config.json").is_file():
        kind = read_object(folder / "config.json", "a checkpoint's configuration").get("model_type")
        if isinstance(kind, str) and kind != "whisper":
            raise UserError(f"{folder}: a {_short(kind)} model; expected a 'whisper' checkpoint")
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in FEATURES_FILES):
        missing.append(FEATURES_FILES[0])
    if missing:
        raise UserError(
            f"{folder}: lacks {', '.join(missing)}; copy what is missing from the checkpoint that it was trained from, or save that "
            "one's WhisperProcessor and GenerationConfig here with save_pretrained()"
        )


def feature_settings(folder: Path) -> tuple[Path, dict[str, object]]:
    """The file that says how a checkpoint's features are computed, and its settings; raises UserError if no file has them."""
    path = folder / FEATURES_FILES[0]
    if path.is_file():
        return path, read_object(path, "settings of the features")
    path = folder / FEATURES_FILES[1]
    settings = read_object(path, "settings of a processor").get("feature_extractor")
    if not isinstance(settings, dict):
        raise UserError(f"{path}: feature_extractor is {_short(settings)}; expected the settings of the features")
    return path, settings


def check_settings(folder: Path, classes: Mapping[str, Sequence[str]] = CLASSES) -> None:
    """Raise UserError if a JSON file of a checkpoint or bundle names code to load, or a file to read in place of its own."""
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue  # left behind by file managers and never read
        check_not_lfs_pointer(path)
        if path.name in TABLES:
            continue
        # what nobody here reads, such as CTranslate2's vocabulary.json, may be a list
        read = read_object if path.name.endswith("config.json") else read_json
        for key, value in _items(read(path, "settings of a checkpoint")):
            named = next((part for part in NAMES_CODE if part in key), None)
            if named == "attn_implementation" and value in ATTENTION:
                continue
            if named == "kernel" and _all(value if isinstance(value, list) else [value], _is_int):
                continue  # the width of a convolution
            if named and not (value is None or isinstance(value, bool)):
                raise UserError(
                    f"{path}: {key} is {_short(value)}, which names code to load, and no code of a checkpoint is run; "
                    "delete the key if you trust the rest"
                )
            if key in NAMES_FILE and value is not None:
                raise UserError(
                    f"{path}: {key} is {_short(value)}; a checkpoint's files are found by their names, delete the key"
                )
            if key in classes and value is not None and value not in classes[key]:
                raise UserError(f"{path}: {key} is {_short(value)}; expected {' or '.join(classes[key])}")


def generation_config(folder: Path, config: WhisperConfig) -> GenerationConfig:
    """The checked generation_config.json of a checkpoint; raises UserError for values that do not fit the model."""
    from transformers import GenerationConfig

    path = folder / "generation_config.json"
    content = read_object(path, "a generation configuration")
    check_generation(content, config, path)
    try:
        settings: GenerationConfig = GenerationConfig.from_dict(content)
    except Exception as error:  # noqa: BLE001  # it checks a hundred settings, each with errors of its own
        raise UserError(f"{path}: cannot be used ({first_line(error)}); copy the original checkpoint's") from None
    return settings


def check_generation(content: Mapping[str, object], config: WhisperConfig, path: Path) -> None:
    """Raise UserError, which begins with `path`, for settings of generation that do not fit the model."""
    from transformers import GenerationConfig

    size = config.vocab_size
    for key, value in content.items():
        if value is None:
            continue
        if key.endswith("token_id"):
            _check(
                path,
                key,
                value,
                _is_token(value, size) or _all(value, lambda i: _is_token(i, size)),
                f"a token below {size:,}",
            )
        elif key in ("suppress_tokens", "begin_suppress_tokens"):
            _check(path, key, value, _all(value, lambda i: _is_token(i, size)), f"a list of tokens below {size:,}")
        elif key in ("lang_to_id", "task_to_id"):
            fits = isinstance(value, dict) and all(_is_token(i, size) for i in value.values())
            _check(path, key, value, fits, f"names with tokens below {size:,}")
        elif key == "alignment_heads":
            _check(path, key, value, _all(value, _is_pair), "pairs of layer and head")
        elif key == "forced_decoder_ids":
            _check(path, key, value, _all(value, _is_pair), "pairs of position and token")
        elif key == "is_multilingual":
            _check(path, key, value, isinstance(value, bool), "true or false")
        elif hasattr(GenerationConfig, key):
            raise UserError(f"{path}: {key!r} is not a setting; delete the key")


def checked_config(content: dict[str, Any], path: Path) -> WhisperConfig:
    """A Whisper's configuration, all of whose values have the right type and are within bounds; other keys of `content` are left out.

    Raises:
        UserError: another architecture, or a value that does not fit; the message begins with `path`.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import WhisperConfig

    if (kind := content.get("model_type")) != "whisper":
        raise UserError(f"{path.parent}: a {_short(kind)} model; expected a 'whisper' checkpoint")
    defaults = {
        name: p.default
        for name, p in inspect.signature(WhisperConfig.__init__).parameters.items()
        if name
        in WhisperConfig.__annotations__  # what every model has besides (dtype, labels) is not taken from a file
    }
    values = {key: content[key] for key in (*defaults, *OURS) if key in content}
    # a key that is not there means the stock value, which may not fit a smaller vocabulary
    values = {key: value for key, value in defaults.items() if key.endswith("token_id")} | values
    size = values.get("vocab_size", defaults["vocab_size"])
    for key, value in values.items():
        _check_value(path, key, value, defaults.get(key), size)
    # transformers wants a float where a float is the default, and JSON writes 0 for 0.0
    values = {key: float(value) if isinstance(defaults.get(key), float) else value for key, value in values.items()}
    try:
        config = WhisperConfig(**(values | {"attn_implementation": "sdpa"}))
    except StrictDataclassError as error:
        raise UserError(f"{path}: transformers rejects it: {last_line(str(error))}") from None
    if config.max_source_positions != POSITIONS:
        raise UserError(
            f"{path}: max_source_positions is {config.max_source_positions}; Whisper's window of 30 s has {POSITIONS}"
        )
    for side in ("encoder", "decoder"):
        if config.d_model % (heads := getattr(config, f"{side}_attention_heads")):
            raise UserError(
                f"{path}: d_model is {config.d_model}, which is not divisible by {side}_attention_heads, {heads}"
            )
    if "pool_after" in values:
        layers, after = config.encoder_layers, values["pool_after"]
        _check(
            path,
            "pool_after",
            after,
            after is None or (_is_int(after) and 1 <= after <= layers),
            f"a layer from 1 to {layers}",
        )
    if "encoder_ranks" in values:
        check_ranks(config, str(path))
    if (parameters := _parameters(config)) > MAX_PARAMETERS:
        raise UserError(f"{path}: describes a model of {parameters:,} parameters; expected at most {MAX_PARAMETERS:,}")
    return config


def _check_value(path: Path, key: str, value: object, default: object, size: object) -> None:
    """Check one value of config.json: its type is its default's; raises UserError."""
    fits, expected = True, ""
    if key == "architectures":
        fits, expected = value is None or _all(value, lambda name: isinstance(name, str)), "a list of names"
    elif key == "activation_function":
        fits, expected = value in ("gelu", "relu", "gelu_new", "silu", "swish"), "gelu, relu or silu"
    elif key in ("suppress_tokens", "begin_suppress_tokens"):
        fits = value is None or _all(value, lambda i: _is_token(i, size))
        expected = "a list of tokens below vocab_size"
    elif key.endswith("token_id"):
        fits, expected = _is_token(value, size), "a token below vocab_size"
    elif isinstance(default, bool) or key == "tie_word_embeddings":
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, float):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
        expected = "a number from 0 to 1"
    elif isinstance(default, int):
        most, least = MOST.get(key, MAX_OTHERS), 1 if key in MOST else 0
        fits, expected = _is_int(value) and least <= value <= most, f"a whole number from {least} to {most:,}"
    _check(path, key, value, fits, expected)


def _parameters(config: WhisperConfig) -> int:
    """About how many parameters a model has: the products of its layers and its embeddings."""
    width = config.d_model
    encoder = config.encoder_layers * (4 * width * width + 2 * width * config.encoder_ffn_dim)
    decoder = config.decoder_layers * (8 * width * width + 2 * width * config.decoder_ffn_dim)
    tables = width * (config.vocab_size + config.max_source_positions + config.max_target_positions)
    return int(encoder + decoder + tables + 3 * width * (width + config.num_mel_bins))


def _items(value: object) -> Iterator[tuple[str, object]]:
    """Every key of nested objects with its value; without recursion, which deep nesting would exhaust."""
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            yield from inner.items()
            left += inner.values()
        elif isinstance(inner, list):
            left += inner


def _check(path: Path, key: str, value: object, fits: bool, expected: str) -> None:
    if not fits:
        raise UserError(f"{path}: {key} is {_short(value)}; expected {expected}")


def _all(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(fits(item) for item in value)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_token(value: object, size: object) -> bool:
    return _is_int(value) and (not _is_int(size) or 0 <= value < size)


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and _is_int(value[0]) and 0 <= value[0] < MAX_OTHERS
        and (value[1] is None or (_is_int(value[1]) and 0 <= value[1] < MOST["vocab_size"]))
    )  # fmt: skip


def _short(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
