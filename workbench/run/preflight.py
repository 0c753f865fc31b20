"""What would fail, or be silently ignored, later in a run: checked before it starts."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench.audio.decode import LONGEST_SECONDS, SAMPLE_RATE
from workbench.config.recipe import Recipe
from workbench.core.errors import UserError
from workbench.corpus import Utterance
from workbench.corpus.batching import plan_steps
from workbench.losses.ctc import frames_needed
from workbench.models import Family
from workbench.weighting import inactive_reason

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

log = logging.getLogger("workbench")
NAMED = 10  # clips or characters that a warning names


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


def check_sharding(accelerator: Accelerator, recipe: Recipe) -> None:
    """Raise UserError for a way of sharding that checkpoints cannot be written under, or whose shards cannot be rounded."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise UserError("FSDP version 1 is not supported; set `fsdp_version: 2` in the accelerate configuration")
    rounded = [name for name, stage in recipe.stages.items() if stage.quantization is not None]
    if plugin is not None and rounded:
        raise UserError(
            f"stages.{rounded[0]}.quantization: the weights of a sharded student cannot be rounded; use DDP instead of FSDP"
        )
    if getattr(accelerator.state, "deepspeed_plugin", None) is not None:
        raise UserError("DeepSpeed is not supported; use FSDP 2, which shards the same way (docs/scale.md)")


def alignable(
    utterances: Sequence[Utterance], family: Family, silence: float, *, stream: bool = False
) -> list[Utterance]:
    """The clips whose transcript a CTC head has labels and frames for; the others are left out, counted and named. All of them for other heads.

    Args:
        utterances: clips to train on.
        family: the student's.
        silence: seconds of silence that follow each clip at least.
        stream: whether they are a window of a stream, of which clips in another script are left out, too, and all of them may be.

    Raises:
        UserError: no clip is left, or a transcript is in another script.
    """
    if family.objective != "ctc" or not utterances:
        return list(utterances)
    lacking = Counter(c for u in utterances for c in family.lacking(u.text))
    if lacking:
        log.warning(
            "the vocabulary lacks %d letters and digits of the transcripts, which are left out of the labels: %s",
            lacking.total(), ", ".join(f"{char} {count}" for char, count in lacking.most_common(NAMED)),
        )  # fmt: skip
    if stream:
        utterances = _writable(utterances, family)
    needed = [(u, int(frames_needed(_labels(u, family)))) for u in utterances]
    # a text of digits alone would teach a vocabulary without digits that nothing was said
    written = [(u, count) for u, count in needed if count or not any(map(str.isalnum, u.text))]
    _warn_left_out("have no letter that the vocabulary has and are left out", needed, written)
    kept = [(u, count) for u, count in written if count <= family.positions(round((u.seconds + silence) * SAMPLE_RATE))]
    _warn_left_out("have more tokens than frames, so CTC cannot align them; they are left out", written, kept)
    if not kept and not stream:
        raise UserError(
            "no clip is left to train on: transcripts have no letter that the vocabulary has, or more tokens than their clips have frames; "
            "check that texts and recordings belong together"
        )
    return [u for u, _ in kept]


def _warn_left_out(why: str, of: Sequence[tuple[Utterance, int]], kept: Sequence[tuple[Utterance, int]]) -> None:
    """Count and name the clips that are not kept."""
    there = {u.id for u, _ in kept}
    if out := [u.id for u, _ in of if u.id not in there]:
        log.warning(
            "%d of %d clips %s: %s%s",
            len(out),
            len(of),
            why,
            ", ".join(out[:NAMED]),
            " ..." if len(out) > NAMED else "",
        )


def _writable(utterances: Sequence[Utterance], family: Family) -> list[Utterance]:
    """The clips whose transcripts the model can write; the others are counted in a warning."""
    kept, first = [], ""
    for utterance in utterances:
        try:
            _labels(utterance, family)
        except UserError as error:
            first = first or str(error)
        else:
            kept.append(utterance)
    if first:
        log.warning("%d of %d clips are left out, the first: %s", len(utterances) - len(kept), len(utterances), first)
    return kept


def check_transcripts(utterances: Sequence[Utterance], family: Family) -> None:
    """Raise UserError naming the first clip whose language the model does not support, or whose text is too long for its decoder."""
    known: set[str] = set()
    fits = family.token_limit(
        LONGEST_SECONDS, "en"
    )  # a token is at least one byte, so most texts need not be tokenized
    for utterance in utterances:
        if utterance.language in known and len(utterance.text.encode()) < fits:
            continue
        _labels(utterance, family)
        known.add(utterance.language)


def _labels(utterance: Utterance, family: Family) -> Tensor:
    """A clip's labels [1, tokens]; raises UserError, which names the clip, where the model cannot write its transcript."""
    try:
        return family.tokens([utterance.text], [utterance.language]).labels
    except UserError as error:
        raise UserError(f"{utterance.place}: {error}") from None
