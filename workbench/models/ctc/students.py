"""Students with some of a model's encoder layers, weights included."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from workbench.core.errors import UserError

POSITION_BIAS = "attention.rel_attn_embed.weight"  # of WavLM's first layer, which all layers share


def with_layers(model: Any, kept: Sequence[int], root: str) -> Any:
    """A model with some of another's layers, whose tensors' names begin with `root`, and all before and after them; in eval mode.

    Students are trained in this mode, too: dropout would blur the teacher's targets, and its draws could not be resumed.
    """
    config = copy.deepcopy(model.config)
    encoder_config(config).num_hidden_layers = len(kept)
    with torch.device(next(model.parameters()).device):
        student = type(model)(config)
    student.load_state_dict(renumbered(model.state_dict(), root, kept))
    return student.float().eval()


def renumbered(state: dict[str, torch.Tensor], root: str, kept: Sequence[int]) -> dict[str, torch.Tensor]:
    """A model's tensors with only some layers of those that begin with `root`, numbered from 0."""
    out = {name: value.clone() for name, value in state.items() if not name.startswith(root)}
    for new, old in enumerate(kept):
        own = f"{root}{old}."
        out |= {f"{root}{new}.{n.removeprefix(own)}": v.clone() for n, v in state.items() if n.startswith(own)}
    if (bias := state.get(f"{root}0.{POSITION_BIAS}")) is not None:
        out[f"{root}0.{POSITION_BIAS}"] = bias.clone()
    return out


def encoder_config(config: Any) -> Any:
    """The part of a configuration that says how large the encoder is; a Parakeet's is inside, others' are the whole."""
    return getattr(config, "encoder_config", config)


def width_of(model: nn.Module) -> int:
    """Width of the encoder's states, of a CTC model or of a Whisper."""
    config = encoder_config(model.config)
    return int(config.d_model if hasattr(config, "d_model") else config.hidden_size)


def check_width(student: nn.Module, teacher: nn.Module, matched: Sequence[str]) -> None:
    """Raise UserError if a recipe compares states of models of other width; `matched` are its keys that do."""
    if matched and width_of(student) != width_of(teacher):
        raise UserError(
            f"{matched[0]}: student width {width_of(student)}, teacher {width_of(teacher)}; "
            "set it to 0, or build the student from the teacher's layers"
        )
