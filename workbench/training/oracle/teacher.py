"""The oracle teacher of a stage (models/ctc/oracle.py): trained before the stage begins, then asked once for its distribution at every frame.

It reads the states of the student's encoder as it is when the stage begins, and is trained with CTC on the same transcripts that it reads.
What it says of each clip is kept as any teacher's targets are, so that every weighting and divergence works with it. Our interpretation: the
student's encoder is the teacher's, where the paper trains one of its own; it is frozen, and the teacher is trained on one drawn length of
silence after each clip; its targets are those of the clip with the longest silence, so that the student has a target at each frame; and
a weighting that looks at the teacher's loss sees the oracle's, which knows the transcript.

All but the uncertainty's cache is in the run's folder until the run ends: `oracle/STAGE/training.safetensors` after each of its epochs, so that a killed run resumes,
then `oracle.safetensors`, `report.json`, `targets`, and `uncertainty.json` where the weighting asks for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from workbench.cache.encoder_cache import EncodingSettings, encode_clips
from workbench.cache.labelled_dataset import LabelledDataset
from workbench.cache.tail import check_tail
from workbench.cache.teacher_targets import TargetCache, TargetSettings, compute_targets
from workbench.cache.tensor_shards import ShardStore
from workbench.cache.uncertainty import measure_uncertainty
from workbench.core.errors import UserError
from workbench.core.files import read_object, write_json
from workbench.core.hashing import sha256
from workbench.core.machine.distributed import wait_for_all
from workbench.core.progress import Progress
from workbench.corpus.batching import plan_steps
from workbench.models.ctc.oracle import OracleTeacher, oracle_family
from workbench.run import checkpoints
from workbench.run.folder import delete_run_files
from workbench.training.context import RunContext
from workbench.training.oracle.fit import TRAINING, Clips, load_oracle, measured, train_oracle, write_tensors
from workbench.weighting import needs_uncertainty

log = logging.getLogger("workbench")
FOLDER, REPORT, UNCERTAINTY = "oracle", "report.json", "uncertainty.json"
WEIGHTS = "oracle"  # name of its file, without the ending
COPIES_BELOW = 2.0  # times its own loss: where that on another clip's speech is lower, it copies the text


def with_oracle(context: RunContext, number: int, name: str, whole: LabelledDataset | None, begun: bool) -> RunContext:
    """Train a stage's oracle teacher, or take up what a killed run has left of it, and ask it for its targets. All processes must call it.

    Args:
        context: the run's context, whose student is as it is when the stage begins; of a resumed stage only its targets are read.
        number: the stage's number.
        name: the stage's name.
        whole: the corpus; never None, since a recipe with a stream is refused.
        begun: whether the stage has taken a step, so that the student's encoder is no longer the teacher's.

    Returns:
        The context, with the targets among the stage's teachers.

    Raises:
        UserError: the stage has begun, and what it needs of its teacher is missing or damaged.
    """
    recipe, processes, accelerator = context.recipe, context.processes, context.accelerator
    stage, folder = recipe.stages[name], context.folder / FOLDER / name
    settings = stage.oracle_teacher
    assert settings is not None  # noqa: S101  called for such stages only
    assert whole is not None  # noqa: S101
    family, model = context.family, context.whole_model()
    oracle = OracleTeacher(family.width, family.vocabulary_size, settings.width, recipe.seed).to(accelerator.device)
    if not processes.broadcast((folder / f"{WEIGHTS}.safetensors").is_file()):
        _check_begun(folder, name, begun)
        if processes.is_main:
            _train(context, number, name, whole, model, oracle)
        wait_for_all()
    load_oracle(oracle, checkpoints.load_tensors(folder, WEIGHTS), folder)
    oracle.requires_grad_(False)
    silence = recipe.trailing_silence.train_max
    reader = oracle_family(family, oracle, silence)
    targets = TargetSettings(
        sha256(folder / f"{WEIGHTS}.safetensors"), recipe.targets.top_k, recipe.targets.temperature, silence, False,
        recipe.precision, silence, recipe.targets.kind, recipe.targets.samples if recipe.targets.kind == "sampled" else 0, True,
    )  # fmt: skip
    cache = TargetCache(targets, folder / "targets")
    rank, world_size = accelerator.process_index, accelerator.num_processes
    cache.check(whole.keys, rank, world_size)
    missing = sum(key not in cache for key in whole.keys)
    if missing:
        _check_begun(folder, name, begun)
    with Progress("oracle teacher's targets", missing, processes.is_main) as progress, accelerator.autocast():
        compute_targets(
            model, reader, whole.utterances, cache, recipe.targets.teacher_batch_size, rank, world_size,
            partial(_advance, progress, world_size),
        )  # fmt: skip
    wait_for_all()
    cache.store.reload()
    taught = replace(whole, caches=[cache])
    check_tail(recipe, taught, processes, oracle=True)
    uncertainty = None
    if needs_uncertainty(stage.weighting):
        path = folder / UNCERTAINTY
        if not processes.broadcast(path.is_file()):
            _check_begun(folder, name, begun)
            with (
                Progress("oracle teacher's uncertainty", len(whole.keys), processes.is_main) as progress,
                accelerator.autocast(),
            ):
                advance = partial(_advance, progress, world_size)
                measured_here = measure_uncertainty(model, reader, taught, targets, rank, world_size, advance)
            found = processes.gather_dict(measured_here)
            if processes.is_main:
                write_json(path, found)
            wait_for_all()
        uncertainty = {str(key): float(value) for key, value in read_object(path, "a teacher's uncertainty").items()}
    own = replace(context.teachers[name], oracle=cache, uncertainty=uncertainty)
    return replace(context, teachers={**context.teachers, name: own})


def _advance(progress: Progress, world_size: int, clips: int) -> None:
    progress.advance(clips * world_size)


def _check_begun(folder: Path, name: str, begun: bool) -> None:
    if begun:
        raise UserError(
            f"{folder}: what stage {name} has of its oracle teacher is missing or damaged, and the student's encoder, which it was trained on, has "
            "changed since; run the command with --restart"
        )


def _train(
    context: RunContext, number: int, name: str, whole: LabelledDataset, model: nn.Module, oracle: OracleTeacher
) -> None:
    """On the main process: encode the corpus, train, measure, and write the teacher."""
    recipe, folder = context.recipe, context.folder / FOLDER / name
    stage, settings = recipe.stages[name], recipe.stages[name].oracle_teacher
    assert settings is not None  # noqa: S101  called for such stages only
    store = ShardStore(folder / "states")
    store.check(whole.keys)
    missing = sum(key not in store for key in whole.keys)
    with Progress("oracle teacher's encoder", missing) as progress, context.accelerator.autocast():
        encoding = EncodingSettings(margin=recipe.trailing_silence, seed=recipe.seed)
        encode_clips(model, context.family, whole, store, encoding, progress.advance)
    store.reload()
    clips = Clips(context.family, whole, store, context.accelerator.device)
    seed = (recipe.seed, number)
    plan = [
        plan_steps(whole.utterances, stage.batch_seconds, recipe.trailing_silence.train_max, (*seed, epoch, 6))
        for epoch in range(settings.epochs)
    ]
    train_oracle(oracle, clips, plan, settings, seed, folder)
    report = measured(oracle, clips)
    elsewhere = report["loss_on_other_speech"]
    log.info(
        "oracle teacher of stage %s: CTC loss per token %.3f with the transcripts, %.3f without them, %s with the transcripts on another clip's speech",
        name, report["loss"], report["loss_without_text"], "not measured" if elsewhere is None else f"{elsewhere:.3f}",
    )  # fmt: skip
    if elsewhere is not None and elsewhere < COPIES_BELOW * (report["loss"] or 0.0):
        log.warning(
            "oracle teacher of stage %s: the transcripts fit another clip's speech nearly as well as their own, so it says little about what is "
            "heard when; raise oracle_teacher.epochs, or hidden_text",
            name,
        )
    write_json(folder / REPORT, report)
    write_tensors(folder, WEIGHTS, oracle.state_dict())
    delete_run_files(context.folder, f"{FOLDER}/{name}/states")
    (folder / f"{TRAINING}.safetensors").unlink(missing_ok=True)


def oracle_reports(run: Path, stages: Sequence[str]) -> dict[str, dict[str, object]]:
    """What was measured of the oracle teachers of a run's stages, by the stage's name."""
    return {name: read_object(run / FOLDER / name / REPORT, "an oracle teacher's report") for name in stages}
