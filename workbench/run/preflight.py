"""What would fail, or be silently ignored, later in a run: checked before it starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench.audio.decode import LONGEST_SECONDS
from workbench.config.recipe import Recipe
from workbench.core.errors import UserError
from workbench.corpus import Utterance
from workbench.corpus.batching import plan_steps
from workbench.models import Family
from workbench.weighting import inactive_reason

if TYPE_CHECKING:
    from accelerate import Accelerator


def check_trackers(recipe: Recipe) -> None:
    """Raise UserError for a tracker that is not installed: Accelerate would silently continue without it."""
    for name in recipe.trackers:
        if importlib.util.find_spec(name) is None:
            how = "-c constraints.txt -e '.[tracking]'" if name == "trackio" else name
            raise UserError(f"trackers names {name!r}, which is not installed; pip install {how}, or leave it out")


def check_schedules(recipe: Recipe, train_set: Sequence[Utterance]) -> None:
    """Raise UserError for a weighting whose schedule begins only after a stage's `max_steps`.

    The recipe's own check uses the number of epochs; how many of them `max_steps` leaves depends on the clips. A stream's
    length is not known.
    """
    for number, (name, stage) in enumerate(recipe.stages.items()):
        if stage.max_steps is None or recipe.stream is not None:
            continue
        steps = epochs = 0
        while steps < stage.max_steps and epochs < stage.epochs:
            seed = (recipe.seed, number, epochs)
            steps += len(plan_steps(train_set, stage.batch_seconds, recipe.trailing_silence.train_min, seed))
            epochs += 1
        reason = inactive_reason(stage.weighting, stage.schedule(epochs, steps=min(steps, stage.max_steps)))
        if reason is not None:
            raise UserError(
                f"stages.{name}.weighting, of which max_steps: {stage.max_steps} leaves {epochs} epoch(s): {reason}"
            )


def check_sharding(accelerator: Accelerator) -> None:
    """Raise UserError for a way of sharding that checkpoints cannot be written under."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise UserError("FSDP version 1 is not supported; set `fsdp_version: 2` in the accelerate configuration")
    if getattr(accelerator.state, "deepspeed_plugin", None) is not None:
        raise UserError("DeepSpeed is not supported; use FSDP 2, which shards the same way (docs/scale.md)")


def check_transcripts(utterances: Sequence[Utterance], family: Family) -> None:
    """Raise UserError naming the first clip whose language the model does not support, or whose text is too long for its decoder."""
    known: set[str] = set()
    fits = family.token_limit(
        LONGEST_SECONDS, "en"
    )  # a token is at least one byte, so most texts need not be tokenized
    for utterance in utterances:
        if utterance.language in known and len(utterance.text.encode()) < fits:
            continue
        try:
            family.tokens([utterance.text], [utterance.language])
        except UserError as error:
            raise UserError(f"{utterance.place}: {error}") from None
        known.add(utterance.language)
