"""Controls for any weighting: the same weights without the information about the utterance that they were computed for.

A gain of a weighting over a constant weight may come from its mean, its schedule, or the size of its weights alone. Two controls keep
those and drop the rest: `permute` gives each utterance the weights of another one of like length in its micro-batch, and `schedule_only`
gives all of them the micro-batch's mean. The grouping by length and the draw are our interpretation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.config.sections import DivergenceRecipe
from workbench.core.hashing import hash_json
from workbench.weighting.meta_batches import MetaBatches
from workbench.weighting.protocol import SelfTeacherSettings, Weighting, WeightingInput, Weights

LIKE_LENGTH = (
    1.5  # utterances with at most this many times the labels of the shortest in their group may exchange weights
)


class Controlled(Weighting):
    """A weighting whose weights are exchanged between utterances, or averaged. Everything else is the weighting's own.

    Args:
        weighting: the weighting that is controlled.
        control: `permute` or `schedule_only`.
    """

    def __init__(self, weighting: Weighting, control: str) -> None:
        self.weighting, self.control = weighting, control
        self.log_names = (*weighting.log_names, *(("exchanged",) if control == "permute" else ()))
        self.meta_learned = weighting.meta_learned

    def __call__(self, inputs: WeightingInput) -> Weights:
        """The weighting's weights, exchanged or averaged; what it logs stays with the utterance that it was computed for.

        `exchanged` is the share of utterances that got another one's weights: all of them, unless the micro-batch has only one.
        """
        weights = self.weighting(inputs)
        if self.control == "schedule_only":
            task = weights.task.mean().expand_as(weights.task)
            return replace(
                weights,
                task=task,
                distillation=weights.distillation.mean(-1, keepdim=True).expand_as(weights.distillation),
            )
        order = self.permutation(inputs).to(weights.task.device)
        moved = (order != torch.arange(len(order), device=order.device)).float()
        return replace(
            weights,
            task=weights.task[order],
            distillation=weights.distillation[..., order],
            log={**weights.log, "exchanged": moved},
        )

    def permutation(self, inputs: WeightingInput) -> Tensor:
        """Whose weights each utterance gets. It follows from the seed, the utterances and the progress, so that a resumed run repeats it.

        -> int64 [utterances]
        """
        lengths = label_counts(inputs)
        draw = np.random.default_rng(int(hash_json([self.seed, list(inputs.ids), inputs.progress])[:16], 16))
        order = np.arange(len(lengths))
        for group in groups_of_like_length(lengths):
            # a random cycle through the group: with two or more utterances, none keeps its own weights
            cycle = draw.permutation(group)
            order[cycle] = np.roll(cycle, 1)
        return torch.from_numpy(order)

    def observe(self, inputs: WeightingInput) -> None:
        """As the weighting does."""
        self.weighting.observe(inputs)

    def on_optimizer_step(self, total: Callable[[Tensor], Tensor]) -> None:
        """As the weighting does."""
        self.weighting.on_optimizer_step(total)

    def divergence(self, chosen: DivergenceRecipe, progress: float) -> DivergenceRecipe:
        """The weighting's."""
        return self.weighting.divergence(chosen, progress)

    @property
    def self_teacher(self) -> SelfTeacherSettings | None:
        """The weighting's."""
        return self.weighting.self_teacher

    def is_self_distilling(self, progress: float) -> bool:
        """As the weighting is."""
        return self.weighting.is_self_distilling(progress)

    def should_look_ahead(self, epoch: int, learning_rate: float) -> bool:
        """As the weighting does."""
        return self.weighting.should_look_ahead(epoch, learning_rate)

    def look_ahead(self, meta_batches: MetaBatches) -> None:
        """As the weighting does: it learns from the utterances that its weights are for; the exchange comes afterwards."""
        self.weighting.look_ahead(meta_batches)

    def nothing_learnt(self) -> str | None:
        """As the weighting reports it."""
        return self.weighting.nothing_learnt()

    def state_dict(self) -> dict[str, object]:
        """The weighting's state; a control has none."""
        return self.weighting.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the weighting's."""
        self.weighting.load_state_dict(state)


def label_counts(inputs: WeightingInput) -> list[int]:
    """Labels of each utterance, for its length; all alike where the labels are not known."""
    if not len(inputs.utterance_index):
        return [1] * len(inputs.ids)
    counts: list[int] = torch.bincount(inputs.utterance_index, minlength=len(inputs.ids)).tolist()
    return counts


def groups_of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of utterances in groups of like length, the shortest first; a last one that would be alone joins its neighbours."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and (lengths[i] <= LIKE_LENGTH * lengths[groups[-1][0]] or len(groups[-1]) == 1):
            groups[-1].append(i)
        else:
            groups.append([i])
    if len(groups) > 1 and len(groups[-1]) == 1:
        alone = groups.pop()
        groups[-1] += alone
    return groups
