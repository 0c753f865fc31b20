"""Recipe keys of earlier versions, so that recipes, studies and run folders written with them can still be read."""

from __future__ import annotations

from collections.abc import Mapping

from workbench.config.weightings import earlier_names
from workbench.core.errors import UserError

# section -> earlier key -> today's key; STAGE stands for the name of any stage
STAGE = "*"
EARLIER: dict[tuple[str, ...], dict[str, str]] = {
    (): {
        "ema": "ema_decay",
        "limit": "max_clips",
        "margin": "trailing_silence",
        "teacher_shares": "teacher_weights",
    },
    ("student",): {"encoder_variance": "encoder_low_rank_variance", "initial": "init_from"},
    ("trailing_silence",): {"longest": "train_max", "shortest": "train_min"},
    ("targets",): {"accept_tail": "allow_large_tail", "batch_clips": "teacher_batch_size"},
    ("augment",): {
        "concatenate": "concatenate_seconds",
        "frequency_width": "frequency_mask_bins",
        "noise_db": "snr_db",
        "noise_share": "noise_probability",
        "speeds": "speed_factors",
        "time_width": "time_mask_frames",
    },
    ("stages", STAGE): {
        "clip_norm": "max_grad_norm",
        "decoding": "decoder_losses",
        "encode_once": "cache_encoder_states",
        "steps": "max_steps",
        "warmup_share": "warmup_ratio",
    },
    ("stages", STAGE, "on_policy"): {"share": "fraction"},
}


def use_current_names(content: dict[str, object], where: str) -> None:
    """Give the keys of a recipe's content today's names, in place. Weightings rename their own options (`parse_settings`).

    Raises:
        UserError: a key stands there under both names.
    """
    for path, names in EARLIER.items():
        for place, section in _sections(content, path):
            for earlier in [key for key in section if key in names]:
                if (name := names[earlier]) in section:
                    key = ".".join((*place, name))
                    raise UserError(
                        f"{where}: {key} is given twice, also by its earlier name {earlier!r}; keep one of them"
                    )
                renamed = {name if key == earlier else key: value for key, value in section.items()}
                section.clear()
                section.update(renamed)


def _sections(content: dict[str, object], path: tuple[str, ...]) -> list[tuple[tuple[str, ...], dict[str, object]]]:
    """The sections that a path of `EARLIER` means, with their places; those that are missing, or are no section, are left out."""
    found: list[tuple[tuple[str, ...], dict[str, object]]] = [((), content)]
    for part in path:
        found = [
            ((*place, str(key)), value)
            for place, section in found
            for key, value in section.items()
            if (part in (STAGE, key)) and isinstance(value, dict)
        ]
    return found


def current_key(key: str, content: Mapping[str, object]) -> str:
    """A dotted key with today's names; `content` determines a stage's weighting, whose options have their own names."""
    section: tuple[str, ...] = ()
    parts = []
    for part in key.split("."):
        name = _names(section, content).get(part, part)
        parts.append(name)
        section = (*section, name)
    return ".".join(parts)


def _names(section: tuple[str, ...], content: Mapping[str, object]) -> Mapping[str, str]:
    """Today's names by earlier ones, of a section's keys."""
    if len(section) == 3 and section[0] == "stages" and section[2] == "weighting":
        options: object = content
        for part in section:
            options = options.get(part) if isinstance(options, Mapping) else None
        return earlier_names(options) if isinstance(options, Mapping) else {}
    general = (section[0], STAGE, *section[2:]) if len(section) > 1 and section[0] == "stages" else section
    return EARLIER.get(general, {})
