"""What runtimes read of a bundle besides its graphs: a checkpoint's files in a form that all of them can read, and our own runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

from export.bundle.inspection import OWN_RUNTIME
from export.bundle.manifest import CHECKPOINT_FILES
from export.graphs.sherpa import sherpa_tokens
from workbench.core.files import read_json, read_object, write_json, write_text
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.loading.checkpoint import feature_settings
from workbench.models.whisper.loading.tokens import prompt_settings


def write_client_files(checkpoint: Path, family: Whisper, folder: Path, heads: list[list[int]]) -> None:
    """Write them into a bundle's folder.

    Args:
        checkpoint: the checkpoint that is exported.
        family: its configuration and tokens.
        folder: the bundle's folder.
        heads: [layer, head] of the cross-attention heads that word times are computed from.
    """
    write_text(folder / "tokens.txt", sherpa_tokens(family))
    for file in CHECKPOINT_FILES:
        if (checkpoint / file).is_file():
            shutil.copyfile(checkpoint / file, folder / file)
    _complete(checkpoint, family, folder)
    generation = read_object(folder / "generation_config.json", "a generation configuration")
    known = prompt_settings(family.tokenizer.get_added_vocab(), family.multilingual)
    missing = {key: value for key, value in known.items() if generation.get(key) is None}
    # the language is what a runtime is asked for, never what an old checkpoint forces
    kept = {key: value for key, value in generation.items() if key != "forced_decoder_ids"}
    write_json(folder / "generation_config.json", {**kept, **missing, "alignment_heads": heads or None})
    shutil.copytree(OWN_RUNTIME, folder / "edge", ignore=shutil.ignore_patterns("__pycache__"))


def _complete(checkpoint: Path, family: Whisper, folder: Path) -> None:
    """Add what transformers 5 does not save but JavaScript, numpy and older clients read."""
    if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        family.tokenizer.backend_tokenizer.model.save(str(folder))
    spelled = read_json(folder / "vocab.json", "a vocabulary")
    added = {token: i for token, i in family.tokenizer.get_added_vocab().items() if token not in spelled}
    write_json(folder / "added_tokens.json", dict(sorted(added.items(), key=lambda item: item[1])))  # for onnx-asr
    if not (folder / "preprocessor_config.json").is_file():
        write_json(folder / "preprocessor_config.json", feature_settings(checkpoint)[1])
    path = folder / "tokenizer_config.json"
    settings = read_json(path, "a tokenizer's settings") if path.is_file() else {}
    # the name that transformers 5 gives this list makes transformers 4 fail; both read the older name
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        write_json(path, settings)
