"""What differs between families of recognisers, behind the protocol `Family`, one package each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workbench.core.errors import UserError
from workbench.core.files import read_object
from workbench.models.protocol import Family

__all__ = ["FAMILIES", "Family", "check_folder", "check_not_run", "has_ctc_head", "open_family"]


def _whisper() -> type[Family]:
    from workbench.models.whisper.family import Whisper

    return Whisper


def _waves() -> type[Family]:
    from workbench.models.ctc.wave_family import WaveCtc

    return WaveCtc


def _whisper_ctc() -> type[Family]:
    from workbench.models.ctc.whisper_family import WhisperCtc

    return WhisperCtc


def _parakeet() -> type[Family]:
    from workbench.models.ctc.parakeet_family import ParakeetCtc

    return ParakeetCtc


# by a checkpoint's `model_type`
FAMILIES: dict[str, Callable[[], type[Family]]] = {
    "whisper": _whisper,
    "wav2vec2": _waves,
    "hubert": _waves,
    "wavlm": _waves,
    "whisper_ctc": _whisper_ctc,
    "parakeet_ctc": _parakeet,
}


def open_family(folder: Path) -> Family:
    """Open a checkpoint folder as its family; raises UserError for one that is not supported."""
    return _family_of(folder)(folder)


def check_folder(folder: Path) -> None:
    """Raise UserError for a checkpoint folder that is not supported, or whose files are inconsistent."""
    _family_of(folder).check(folder)


def has_ctc_head(folder: Path) -> bool:
    """Whether a checkpoint folder is of a family without a decoder."""
    if not (folder / "config.json").is_file():
        return False
    kind = read_object(folder / "config.json", "a checkpoint's configuration").get("model_type")
    return kind in FAMILIES and kind != "whisper"


def check_not_run(folder: Path) -> None:
    """Raise UserError where a folder is a run and not a checkpoint: the message names the student in it."""
    if not (folder / "config.json").is_file() and (folder / "student" / "config.json").is_file():
        raise UserError(f"{folder}: is a run; name its student: {folder / 'student'}")


def _family_of(folder: Path) -> type[Family]:
    check_not_run(folder)
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder}: is an adapter (adapter_config.json), not a whole model; merge it into its base with peft's "
            "merge_and_unload(), save that with save_pretrained(), and name its folder"
        )
    kind = read_object(folder / "config.json", "a checkpoint's configuration").get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{folder}: a {str(kind)[:60]!r} model; supported families: {', '.join(FAMILIES)}")
    return FAMILIES[kind]()
