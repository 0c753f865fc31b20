"""Weights of a checkpoint folder: safetensors alone, and every tensor that the model needs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.errors import UserError
from workbench.files import path_inside, read_json

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

log = logging.getLogger("workbench")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
NAMED = 5  # tensors that a message names


def weight_files(folder: Path) -> list[Path]:
    """Files that hold a checkpoint's weights: one, or the shards that its index lists.

    Raises:
        UserError: there are none in safetensors, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        content = read_json(folder / INDEX, "an index of sharded weights")
        names = sorted(set(content.get("weight_map", {}).values()))
        shards = [path_inside(folder, name, str(folder / INDEX)) for name in names]
        if missing := [path.name for path in shards if not path.is_file()]:
            raise UserError(f"{folder / missing[0]}: missing, though {INDEX} lists it; download the checkpoint again")
        if shards:
            return shards
    pickled = next((name for name in PICKLED if (folder / name).is_file()), None)
    if pickled is None:
        raise UserError(f"{folder}: holds no {WEIGHTS}; expected a transformers checkpoint in safetensors")
    raise UserError(
        f"{folder}: its weights are pickled ({pickled}), which is not loaded; convert a checkpoint that you trust with "
        "python -c \"from transformers import WhisperForConditionalGeneration as W; f = 'FOLDER'; "
        'W.from_pretrained(f).save_pretrained(f)"'
    )


def load_whisper_weights(folder: Path) -> WhisperForConditionalGeneration:
    """Load a transformers Whisper in fp32 on the CPU.

    Raises:
        UserError: its weights are not in safetensors or damaged, or do not fit its config.json: tensors that are missing (transformers
            would fill them with random values), that config.json has no layer for, or of another shape. The output projection
            that is tied to the embedding need not be there.
    """
    from safetensors import SafetensorError
    from transformers import WhisperForConditionalGeneration
    from transformers.utils import logging as transformers_logging

    weight_files(folder)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it would warn of is refused or named below, in one line
    try:
        model, info = WhisperForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: its weights cannot be loaded ({str(error).strip().splitlines()[0]})") from None
    finally:
        transformers_logging.set_verbosity(level)
    problems = _problems(info)
    if problems:
        raise UserError(
            f"{folder}: weights and config.json do not fit ({'; '.join(problems)}); download or save the checkpoint again"
        )
    if ignored := sorted(info["unexpected_keys"]):
        log.warning("%s: %d tensors are not Whisper's and are ignored: %s", folder, len(ignored), _some(ignored))
    loaded: WhisperForConditionalGeneration = model.eval()
    return loaded


def _problems(info: dict[str, Any]) -> list[str]:
    different = [found if isinstance(found, str) else found[0] for found in info["mismatched_keys"]]
    found = {
        "missing": sorted(set(info["missing_keys"]) - set(different)),
        "beyond config.json's layers": sorted(name for name in info["unexpected_keys"] if name.startswith("model.")),
        "of another shape": sorted(different),
    }
    return [f"{len(names)} tensors {what}: {_some(names)}" for what, names in found.items() if names]


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
