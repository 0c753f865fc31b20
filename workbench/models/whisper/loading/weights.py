"""Weights of a checkpoint folder: only safetensors, with every tensor that the model needs."""

from __future__ import annotations

import copy
import functools
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from workbench.core.errors import UserError, first_line
from workbench.core.files import check_not_lfs_pointer, path_inside, read_object
from workbench.core.tensor_files import TensorFile

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

log = logging.getLogger("workbench")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FLOATS = ("F64", "F32", "F16", "BF16")
PROJECTION = "proj_out.weight"
NAMED = 5  # tensors that a message names


def weight_files(folder: Path) -> list[Path]:
    """Files that hold a checkpoint's weights: one, or the shards that its index lists.

    Raises:
        UserError: there are none in safetensors, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        content = read_object(folder / INDEX, "an index of sharded weights")
        places = content.get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise UserError(
                f"{folder / INDEX}: weight_map is not an object of tensors and their files; download the checkpoint again"
            )
        names = sorted(set(places.values()))
        shards = [path_inside(folder, name, str(folder / INDEX)) for name in names]
        if missing := [path.name for path in shards if not path.is_file()]:
            raise UserError(f"{folder / missing[0]}: missing, though {INDEX} lists it; download the checkpoint again")
        if shards:
            return shards
    pickled = next((name for name in PICKLED if (folder / name).is_file()), None)
    if pickled is None:
        raise UserError(f"{folder}: holds no {WEIGHTS}; expected a transformers checkpoint in safetensors")
    raise UserError(
        f"{folder}: its weights are pickled ({pickled}), which are not loaded; convert a checkpoint that you trust with "
        "python -c \"from transformers import WhisperForConditionalGeneration as W; f = 'FOLDER'; "
        'W.from_pretrained(f).save_pretrained(f)"'
    )


def check_weights(folder: Path, config: WhisperConfig) -> None:
    """Compare the tensors that a checkpoint's files name with those that its configuration requires; no value is read.

    Raises:
        UserError: no safetensors, a Git LFS pointer, a file cut off or damaged; tensors that are missing, that the configuration has no
            layer for, of another shape, or not of a floating type. The output projection that is tied to the embedding need
            not be there.
    """
    expected = _shapes(config.to_json_string(use_diff=False))
    found: dict[str, list[int]] = {}
    for name, (shape, kind) in _tensors(folder).items():
        found[name] = shape
        if kind not in FLOATS and name in expected:
            raise UserError(
                f"{folder}: tensor {name} is of type {kind}; expected {', '.join(FLOATS)}: use the checkpoint from before quantization"
            )
    tied = {PROJECTION} if config.tie_word_embeddings else set()
    problems = {
        "missing": sorted(set(expected) - set(found) - tied),
        "beyond config.json's layers": sorted(name for name in set(found) - set(expected) if name.startswith("model.")),
        "of another shape": sorted(name for name, shape in expected.items() if found.get(name, shape) != shape),
    }
    if any(problems.values()):
        said = "; ".join(f"{len(names)} tensors {what}: {some_of(names)}" for what, names in problems.items() if names)
        raise UserError(
            f"{folder}: weights and config.json do not match ({said}); download or save the checkpoint again"
        )


@functools.lru_cache(maxsize=8)  # a command checks the same checkpoints several times
def _shapes(config: str) -> dict[str, list[int]]:
    """Names and shapes of the tensors of a model with a configuration, given as JSON."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig.from_dict(json.loads(config)))
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def load_whisper_weights(
    folder: Path, config: WhisperConfig, generation: GenerationConfig
) -> WhisperForConditionalGeneration:
    """Load a transformers Whisper in fp32 on the CPU.

    Args:
        folder: a checkpoint that `check_checkpoint` has accepted.
        config: what that returned.
        generation: its GenerationConfig.

    Raises:
        UserError: its weights are damaged, hold NaN or infinity, or no longer fit `config`.
    """
    from transformers import WhisperForConditionalGeneration

    check_weights(folder, config)  # the files may have changed since they were checked
    # transformers' own from_pretrained would look for kernels, adapters and code in the folder, too
    config = copy.deepcopy(config)
    config.dtype = torch.float32
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    wanted = set(model.state_dict())
    state, ignored = {}, []
    for path in weight_files(folder):
        with opened(path) as file:
            prefix = _prefix(file.keys())
            for key in file.keys():  # noqa: SIM118  # no dictionary
                if (name := prefix + key) not in wanted:
                    ignored.append(key)
                    continue
                state[name] = file.get_tensor(key).to(torch.float32, copy=True)  # not mapped: the file may be replaced
                if not state[name].isfinite().all():
                    raise UserError(
                        f"{path}: tensor {key} holds NaN or infinity; the training that made it diverged, take an earlier checkpoint"
                    )
    if config.tie_word_embeddings:
        state[PROJECTION] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.generation_config = generation
    if ignored:
        log.warning(
            "%s: %d tensors are not Whisper's and are ignored: %s", folder, len(ignored), some_of(sorted(ignored))
        )
    loaded: WhisperForConditionalGeneration = model.eval()
    return loaded


def _tensors(folder: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and type of every tensor in a checkpoint's files, by its name in the whole model."""
    found: dict[str, tuple[list[int], str]] = {}
    for path in weight_files(folder):
        with opened(path) as file:
            prefix = _prefix(file.keys())
            for key in file.keys():  # noqa: SIM118  # no dictionary
                part = file.get_slice(key)
                found[prefix + key] = (list(part.get_shape()), str(part.get_dtype()))
    return found


@contextmanager
def opened(path: Path) -> Iterator[TensorFile]:
    """A file of weights; raises UserError for one that is cut off or damaged."""
    from safetensors import SafetensorError, safe_open

    check_not_lfs_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: its weights cannot be loaded ({first_line(error)}); the file is cut off or damaged, download it again"
        ) from None


def _prefix(keys: Iterable[str]) -> str:
    """Prefix of a bare WhisperModel's tensor names in the whole model."""
    # a shard of a whole model may hold its projection alone
    return "" if any(key.startswith(("model.", "proj_out.")) for key in keys) else "model."


def some_of(names: list[str]) -> str:
    """The first of some tensors' names, for a message."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
