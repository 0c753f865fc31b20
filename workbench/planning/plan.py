"""What a recipe will cost on an accelerator, found on any machine.

Operations are counted while teacher and student run, and what autograd keeps for the backward pass is added up as it is saved: for a Whisper
on torch's meta device, which has shapes without data. The share of a device's peak that is reached cannot be counted, so it is an option.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import typer

from workbench.cache.decoded_audio import audio_bytes
from workbench.cache.teacher_targets import TargetSettings, estimated_bytes
from workbench.config.named_corpora import is_dataset
from workbench.config.recipe import Recipe
from workbench.config.sections import Stage
from workbench.core.errors import UserError
from workbench.core.tables import print_rows
from workbench.models.students import parameters
from workbench.models.whisper.family import WINDOW_SECONDS
from workbench.planning.devices import open_device
from workbench.planning.flops import step_cost, teacher_pass_flop
from workbench.planning.models import PlannedModel, planned_student, planned_teacher
from workbench.training.quantization import check_quantization
from workbench.training.step.intermediate_ctc import check_layer
from workbench.training.step.student_module import StudentModule
from workbench.training.student import check_predicts_tokens, check_under_teacher, check_without_ctc
from workbench.training.teaching.teacher_ensemble import check_share_tokens

log = logging.getLogger("workbench")
USABLE_MEMORY = 0.9  # the rest is the allocator's, the driver's and the kernels' workspace


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage."""

    name: str
    trained_parameters: int
    tflop_a_clip: float  # forward and backward
    fixed_gb: float  # weights, gradients, optimizer
    activation_gb_a_clip: float
    largest_batch_clips: int  # on one device, in one micro-batch
    largest_batch_seconds: float
    micro_batches: int  # of the recipe's step, on the planned number of devices
    hours: float


@dataclass(frozen=True)
class CostEstimate:
    """Cost of a recipe."""

    device: str
    devices: int
    precision: str
    corpus_hours: float
    clip_seconds: float
    efficiency: float
    teacher_parameters: int  # of all teachers
    student_parameters: int
    teacher_tflop_a_clip: float
    teacher_hours: float
    targets_gb: float
    stages: list[StageCost]

    def as_json(self) -> dict[str, object]:
        """Everything, for a file."""
        return asdict(self)


def plan(
    recipe: Recipe, device: str, devices: int, corpus_hours: float, clip_seconds: float, efficiency: float
) -> CostEstimate:
    """Estimate a recipe's cost.

    Args:
        recipe: what to run.
        device: name in `devices.DEVICES`.
        devices: how many.
        corpus_hours: hours of training speech.
        clip_seconds: length of its clips.
        efficiency: share of the device's peak that is reached.

    Raises:
        UserError: an unknown device or model, or a student that does not fit its teacher.
    """
    hardware = open_device(device)
    flops = hardware.tflops[recipe.precision] * 1e12 * efficiency * devices
    teachers = {name: planned_teacher(name) for name in recipe.teachers}
    teacher = teachers[recipe.teacher]
    families = {name: one.family for name, one in teachers.items()}
    check_share_tokens(recipe, families)
    check_under_teacher(recipe, teacher.family)
    student = planned_student(teacher, recipe.student)
    _check(recipe, student, teacher)
    check_predicts_tokens(recipe, student.family, families)
    if recipe.student.vocabulary == "corpus":
        log.info(
            "student.vocabulary: estimated with all tokens; which ones stay is known only after the teacher's pass"
        )
    if recipe.student.encoder_low_rank_variance is not None:
        log.info("student.encoder_low_rank_variance: estimated unfactorized; the ranks are known only from the clips")
    clips = corpus_hours * 3600 / clip_seconds
    teacher_flop = sum(teacher_pass_flop(one, clip_seconds) for one in teachers.values())
    # a teacher whose decoder runs in the steps reads its encoder's states from disk
    states = any(s.encoder_matching or s.runs_teacher for s in recipe.stages.values())
    targets = recipe.targets
    settings = TargetSettings(
        "",
        targets.top_k,
        targets.temperature,
        recipe.trailing_silence.train_min,
        states,
        kind=targets.kind,
        samples=targets.samples,
    )
    from workbench.corpus import Utterance

    clip = Utterance("", b"", "", clip_seconds)
    a_clip = audio_bytes([clip.seconds]) + sum(
        estimated_bytes(
            [clip],
            replace(settings, frames=one.ctc),
            one.family.width,
            one.family.vocabulary_size,
            one.family.positions,
        )
        for one in teachers.values()
    )
    stages = [
        _stage_plan(
            name, stage, student, recipe, clips, clip_seconds, hardware.memory_gb, devices, flops, _in_memory(recipe, name, teachers)
        )
        for name, stage in recipe.stages.items()
    ]  # fmt: skip
    if running := [name for name, stage in recipe.stages.items() if stage.runs_teacher]:
        log.info("stages %s: the operations of the teacher's decoder in the steps are not counted", ", ".join(running))
    if rounded := [name for name, stage in recipe.stages.items() if stage.quantization is not None]:
        log.info("stages %s: rounding the weights in every step is not counted", ", ".join(rounded))
    if oracles := [name for name, stage in recipe.stages.items() if stage.oracle_teacher is not None]:
        log.info("stages %s: the training of the oracle teacher is not counted", ", ".join(oracles))
    return CostEstimate(
        device, devices, recipe.precision, corpus_hours, clip_seconds, efficiency, sum(parameters(t.model) for t in teachers.values()),
        parameters(student.model), teacher_flop / 1e12, clips * teacher_flop / flops / 3600, clips * a_clip / 1e9, stages,
    )  # fmt: skip


def _check(recipe: Recipe, student: PlannedModel, teacher: PlannedModel) -> None:
    """Raise UserError for a student that cannot be trained as the recipe says."""
    student.family.check_recipe(recipe)
    if not student.ctc:
        check_without_ctc(recipe)
    student.family.check_pair(student.model, teacher.model, recipe.matched_keys(recipe.teacher))
    for name, stage in recipe.stages.items():
        if stage.intermediate_ctc is not None:
            check_layer(stage.intermediate_ctc, name, student.family.encoder_depth(student.model))
        if stage.quantization is not None:
            check_quantization(stage.quantization, name, student.family, student.model)


def _in_memory(recipe: Recipe, stage: str, teachers: Mapping[str, PlannedModel]) -> int:
    """Parameters of the teachers that stay in memory in a stage: those of a stream, and one whose decoder runs in the steps."""
    names = {recipe.teacher, *recipe.more_teachers} if recipe.stream else set()
    if recipe.stages[stage].runs_teacher:
        names.add(recipe.teacher_of(stage))
    return sum(parameters(teachers[name].model) for name in names)


def _stage_plan(
    name: str, stage: Stage, planned: PlannedModel, recipe: Recipe, clips: float, clip_seconds: float, memory_gb: float,
    devices: int, flops: float, teachers_in_memory: int,
) -> StageCost:  # fmt: skip
    model = planned.model
    student = StudentModule(model, planned.family, stage)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # weights in fp32, for each trained one a gradient and AdamW's two moments; under autocast a bf16 copy of the weights
    copies = parameters(model) + teachers_in_memory
    fixed = 4 * copies + 12 * trained + (2 * copies if recipe.precision == "bf16" else 0)
    seconds = min(clip_seconds + recipe.trailing_silence.train_max, WINDOW_SECONDS)
    one, flop = step_cost(planned, student, stage, recipe, seconds, 1)
    two, _ = step_cost(planned, student, stage, recipe, seconds, 2)
    a_clip = max(two - one, 1)
    room = USABLE_MEMORY * memory_gb * 1e9 - fixed
    largest = max(0, int(room // a_clip))
    step_clips = max(1, round(stage.batch_seconds / seconds))
    per_device = -(-step_clips // devices)
    parts = devices * -(-per_device // largest) if largest else 0
    trained_clips = clips * stage.epochs if stage.max_steps is None else stage.max_steps * step_clips
    return StageCost(
        name, trained, flop / 1e12, fixed / 1e9, a_clip / 1e9, largest, largest * seconds, parts,
        trained_clips * flop / flops / 3600,
    )  # fmt: skip


def corpus_size(recipe: Recipe) -> tuple[float, float]:
    """Hours of the training set and mean seconds of its clips, where it can be opened without a network.

    Raises:
        UserError: it is a stream, or cannot be opened here.
    """
    from workbench.corpus import recipe_training_set

    if recipe.stream is not None or is_dataset(recipe.corpus):
        raise UserError(f"corpus {recipe.corpus!r}: its size is not known here; give --hours and --clip-seconds")
    clips = recipe_training_set(recipe)
    seconds = sum(u.seconds for u in clips)
    return seconds / 3600, seconds / len(clips)


def print_plan(found: CostEstimate) -> None:
    """Print a plan as tables."""
    typer.echo(
        f"{found.devices} x {found.device}, {found.precision}, {found.corpus_hours:,.1f} h of speech in clips of "
        f"{found.clip_seconds:.1f} s; {100 * found.efficiency:.0f} % of the peak assumed. Estimated, not run."
    )
    typer.echo(
        f"teacher {found.teacher_parameters / 1e6:,.0f} M parameters, {found.teacher_tflop_a_clip:.3f} TFLOP a clip, its "
        f"pass {found.teacher_hours:,.2f} h; targets {found.targets_gb:,.1f} GB; student "
        f"{found.student_parameters / 1e6:,.0f} M parameters"
    )
    heads = ("stage", "trained", "TFLOP a clip", "fixed GB", "GB a clip", "largest batch", "micro-batches", "hours")
    rows = [
        (
            s.name, f"{s.trained_parameters / 1e6:,.1f} M", f"{s.tflop_a_clip:.4f}", f"{s.fixed_gb:.1f}",
            f"{s.activation_gb_a_clip:.3f}", f"{s.largest_batch_clips:,} clips = {s.largest_batch_seconds:,.0f} s",
            str(s.micro_batches) if s.micro_batches else "does not fit", f"{s.hours:,.2f}",
        )
        for s in found.stages
    ]  # fmt: skip
    print_rows(heads, rows)
