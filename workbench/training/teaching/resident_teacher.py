"""A teacher that stays in memory while a stage trains, so that its decoder can run in the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.cache.tensor_shards import ShardStore
from workbench.config.recipe import Recipe
from workbench.core.errors import UserError
from workbench.models.protocol import Family


@dataclass(frozen=True)
class ResidentTeacher:
    """A teacher and its encoder's states of the whole corpus, which were computed once at 30 s."""

    name: str  # in the recipe
    model: nn.Module  # on the device
    family: Family  # its own, of the whole vocabulary
    store: ShardStore  # its encoder states
    keys: Mapping[str, str]  # key of each utterance's states, by utterance id
    languages: Mapping[str, str]  # each utterance's language, by utterance id

    def states(self, ids: Sequence[str], device: torch.device) -> Tensor:
        """Its encoder states of some utterances, by their ids. -> fp32 [utterances, positions, width]"""
        return torch.stack([self.store.read(self.keys[name], ["states"])[0].float() for name in ids]).to(device)


def full_ids(inputs: Tensor, family: Family) -> Tensor:
    """A student's decoder inputs in the numbers of the whole vocabulary. int64, any shape -> the same"""
    vocabulary = family.vocabulary
    return inputs if vocabulary is None else vocabulary.ids.to(inputs.device)[inputs]


def check_reads_window(recipe: Recipe, stage: str, key: str, family: Family) -> None:
    """Raise UserError if a stage's teacher would have to read 30 s, but was trained to read clips at their own length.

    Args:
        recipe: the run's recipe.
        stage: name of the stage.
        key: its key that needs the teacher's decoder in the steps.
        family: the teacher's.
    """
    if family.trained_silence is not None:
        raise UserError(
            f"stages.{stage}.{key}: teacher {recipe.teacher_of(stage)!r} was trained to read clips at their own length, but would be run "
            f"at 30 s; choose a teacher that reads 30 s, or leave {key} out"
        )
