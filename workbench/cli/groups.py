"""In which groups a command's `--help` shows its options; those that are in none stand first, under "Options"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DECODING = (
    "language",
    "beams",
    "hotwords",
    "hotwords_score",
    "lm",
    "lm_alpha",
    "lm_beta",
    "lm_unk_score_offset",
    "min_logprob",
)
# command -> title of a group -> its parameters
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "transcribe": {
        "The model": ("bundle", "model", "precision", "threads"),
        "Decoding": DECODING,
        "Output": ("output_format", "output", "words", "overwrite"),
    },
    "measure": {
        "What is measured": ("against", "corpus", "split", "clips", "preset", "robustness"),
        "How it is measured": ("threads", "repeats", "again"),
        "Decoding": ("beams", "lm", "lm_alpha", "lm_beta", "lm_unk_score_offset"),
    },
    "demo": {
        "Server": ("host", "port", "threads"),
        "Limits": ("longest", "upload_mb", "at_once", "waiting", "live", "keep_minutes"),
    },
    "serve": {
        "Server": ("host", "port", "workers", "threads"),
        "Limits": ("max_queue", "max_seconds", "max_megabytes"),
        "Requests": (
            *DECODING,
            "vad",
            "alias",
            "ignore_prompt",
            "api_key_variable",
        ),
    },
    "export": {
        "Quantization": ("per_channel", "reduce_range", "symmetric"),
        "A device's budget": ("budget", "device_profile", "threads"),
        "Verification": ("verify", "corpus"),
    },
    "verify": {"Clips": ("corpus", "split", "clips")},
    "label": {
        "Transcription": ("teacher", "language", "beams", "batch", "precision", "longest"),
        "Filters": ("max_wer", "max_compression", "min_confidence", "min_rate", "max_rate", "min_language"),
    },
    "synthesize": {"Speech": ("voice", "language", "speed", "join")},
    "derive": {
        "Folds and the meta split": ("folds", "fold", "meta"),
        "Wrong transcripts": ("corrupt", "how"),
    },
    "study": {"Only some runs": ("arm", "corpus", "seed", "student")},
}


def group_options(command: str | None, params: Sequence[Any]) -> None:
    """Put a command's options into its groups."""
    titles = {name: title for title, names in GROUPS.get(command or "", {}).items() for name in names}
    for param in params:
        if param.name in titles:
            param.rich_help_panel = titles[param.name]
