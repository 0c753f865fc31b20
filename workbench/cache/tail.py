"""How much of the teacher's probability top-k targets leave to the tail bucket, and the refusal to train where it is too much.

At temperature 2 Whisper base leaves four fifths there: the KL over k tokens and a bucket is then a fraction of the full one and has another
gradient (docs/weightings.md, targets).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.cache.labelled_dataset import LabelledDataset
from workbench.cache.teacher_targets import TargetCache
from workbench.config.recipe import Recipe
from workbench.config.sections import Stage
from workbench.core.errors import UserError
from workbench.core.machine.distributed import Processes

log = logging.getLogger("workbench")
MAX_TAIL_MASS = 0.2  # of the teacher's probability, on average over the labels
MEASURED_CLIPS = 256  # at most, spread over the corpus


def tail_mass(top_logits: Tensor, log_normalizer: Tensor, temperature: float) -> Tensor:
    """Probability of all tokens but the k kept. top_logits: [labels, k], log_normalizer: [labels] -> [labels]"""
    return (1 - (top_logits.double() / temperature - log_normalizer[:, None].double()).exp().sum(-1)).clamp(min=0)


def uses_tail_bucket(recipe: Recipe, oracle: bool = False) -> bool:
    """Whether the loss of any stage uses a tail bucket: of those that the recipe's teachers teach, or those that an oracle teacher does."""
    stages = [stage for stage in recipe.stages.values() if (stage.oracle_teacher is not None) == oracle]
    return recipe.targets.kind == "top_k" and any(_distils(stage) for stage in stages)


def _distils(stage: Stage) -> bool:
    squared = stage.divergence.name == "logit_mse" or stage.weighting["name"] == "annealing_kd"
    return not stage.ignores_targets and not squared


def check_tail(recipe: Recipe, dataset: LabelledDataset, processes: Processes, oracle: bool = False) -> float | None:
    """Mean tail mass of the teacher that has most, at the recipe's temperature; None where no loss has a tail bucket.

    All processes must call it. `oracle` says whether the dataset has an oracle teacher's targets.

    Raises:
        UserError: it is above MAX_TAIL_MASS, and `targets.allow_large_tail` is false.
    """
    if not uses_tail_bucket(recipe, oracle):
        return None
    step = -(-len(dataset.keys) // MEASURED_CLIPS)
    masses: list[float] = []
    labels = 0.0
    for cache in dataset.caches:
        mass = _of(dataset.keys[::step], cache, recipe.targets.temperature)
        total, labels = processes.all_reduce_sum(torch.tensor([mass.sum(), len(mass)], dtype=torch.float64)).tolist()
        masses.append(total / max(labels, 1))
    worst, targets = max(masses), recipe.targets
    found = (
        f"the {targets.top_k} likeliest tokens hold {100 * (1 - worst):.1f} % of the teacher's probability at temperature "
        f"{targets.temperature:g} (mean over {labels:.0f} labels) and the bucket of all others {100 * worst:.1f} %"
    )
    if worst <= MAX_TAIL_MASS:
        log.info("targets: %s", found)
        return worst
    if targets.allow_large_tail:
        log.warning("targets: %s: the distillation loss is not that of the whole vocabulary", found)
        return worst
    raise UserError(
        f"targets: {found}, more than {100 * MAX_TAIL_MASS:.0f} %, so their KL is not that of the whole vocabulary; set targets.kind to "
        "sampled (unbiased) or full (fp16, 2 bytes per token of the vocabulary), targets.temperature to 1, or targets.allow_large_tail to true"
    )


def _of(keys: Sequence[str], cache: TargetCache, temperature: float) -> Tensor:
    found = [cache.read(key, states=False) for key in keys]
    kept = [t for t in found if t.top_ids.shape[1]]  # a stream's teacher may not have run
    if not kept:
        return torch.zeros(0, dtype=torch.float64)
    return torch.cat([tail_mass(t.top_logits, t.log_normalizer, temperature) for t in kept])
