"""The student that a run trains: built from the teacher or another checkpoint, its encoder factorized, its vocabulary narrowed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import nn

from workbench.cache.labelled_dataset import LabelledDataset
from workbench.config.recipe import Recipe
from workbench.core.errors import UserError
from workbench.corpus import Utterance
from workbench.losses.soft_targets import likeliest
from workbench.models import Family, open_family
from workbench.models.resolve import resolve_teacher
from workbench.models.students import parameters
from workbench.models.vocabulary import Vocabulary
from workbench.training.quantization import check_quantization
from workbench.training.step.intermediate_ctc import check_layer
from workbench.training.teaching.decoder_matching import stage_layers
from workbench.training.teaching.resident_teacher import check_reads_window
from workbench.training.teaching.teacher_ensemble import TeacherEnsemble

log = logging.getLogger("workbench")


def student_family(recipe: Recipe, teachers: TeacherEnsemble, texts: Sequence[str]) -> Family:
    """The student's family: the teacher's, or with `student.ctc` that of a Whisper encoder with a CTC head.

    Args:
        recipe: the run's recipe.
        teachers: all teachers.
        texts: of the training set; none for a stream.

    Raises:
        UserError: the recipe has a setting that such a student cannot be trained with, or a stage whose losses need another teacher.
    """
    family = teachers.families[0]
    check_under_teacher(recipe, family)
    if recipe.student.ctc is not None:
        from workbench.models.ctc.whisper_family import WhisperCtc

        family = WhisperCtc.over(family, recipe.student, texts)
    family.check_recipe(recipe)
    if family.objective != "ctc":
        check_without_ctc(recipe)
    check_predicts_tokens(recipe, family, dict(zip(teachers.names, teachers.families, strict=True)))
    return family


def check_predicts_tokens(recipe: Recipe, student: Family, teachers: Mapping[str, Family]) -> None:
    """Raise UserError for a stage that distils from a teacher which predicts other tokens than the student; `teachers` are all, by name."""
    for name, stage in recipe.stages.items():
        if stage.ignores_targets or stage.oracle_teacher is not None:
            continue
        for teacher in (recipe.teacher_of(name), *recipe.more_teachers):
            if not student.same_tokens(teachers[teacher]):
                raise UserError(
                    f"stages.{name}.weighting: teacher {teacher!r} does not predict the student's tokens, so there is no distribution "
                    "to learn from; set weighting: {name: fixed, alpha: 0}, which learns from the corpus's transcripts alone (the teacher's, "
                    "if `workbench label` wrote them), set oracle_teacher: {}, or choose a teacher with the same CTC vocabulary"
                )


def check_under_teacher(recipe: Recipe, teacher: Family) -> None:
    """Raise UserError for `student.ctc` under a teacher that is no Whisper."""
    if recipe.student.ctc is not None and teacher.name != "whisper":
        raise UserError(
            f"student.ctc is {recipe.student.ctc}, but teacher {recipe.teacher!r} is no Whisper, whose encoder the student would have; "
            "leave it out: the student has the teacher's head"
        )


def check_without_ctc(recipe: Recipe) -> None:
    """Raise UserError for what acts on students with a CTC head alone."""
    for name, stage in recipe.stages.items():
        for key in ("intermediate_ctc", "oracle_teacher"):
            if getattr(stage, key) is not None:
                raise UserError(
                    f"stages.{name}.{key} needs a student with a CTC head; leave it out, or set student.ctc"
                )


def initial_student(
    recipe: Recipe, teachers: TeacherEnsemble, family: Family, calibration: Sequence[Utterance]
) -> nn.Module:
    """The student with all its teacher's tokens, before it is trained.

    Args:
        recipe: the run's recipe.
        teachers: all teachers.
        family: the student's.
        calibration: clips that decide which of the encoder's linear layers are factorized.

    Raises:
        UserError: `student.init_from` is of another family, the student does not match its teacher, it lacks a layer that a stage names, or a
            stage is to round what is not exported.
    """
    model: nn.Module = family.build_student(_origin(recipe, teachers, family), recipe.student)
    if recipe.student.encoder_low_rank_variance is not None:
        _compress(family, model, recipe, calibration)
    for name, teacher in zip(teachers.names, teachers.models, strict=True):
        if (matched := recipe.matched_keys(name)) or name == recipe.teacher:
            family.check_pair(model, teacher, matched)
    for name, stage in recipe.stages.items():
        number = teachers.number_of(name)
        if stage.intermediate_ctc is not None:
            check_layer(stage.intermediate_ctc, name, family.encoder_depth(model))
        if stage.quantization is not None:
            check_quantization(stage.quantization, name, family, model)
        if stage.teacher_adapter is not None:
            check_reads_window(recipe, name, "teacher_adapter", teachers.families[number])
        if stage.decoder_matching is not None:
            stage_layers(recipe, name, family, model, teachers.families[number], teachers.models[number])
    return model


def _origin(recipe: Recipe, teachers: TeacherEnsemble, family: Family) -> nn.Module:
    """The model that the student's layers are copied from."""
    if recipe.student.init_from is None:
        return teachers.models[0]
    source = resolve_teacher(recipe.student.init_from)
    origin = open_family(source)
    family.check_origin(origin, f"student.init_from {str(source)!r}")
    return origin.load()


def _compress(family: Family, model: nn.Module, recipe: Recipe, calibration: Sequence[Utterance]) -> None:
    """Factorize the encoder's linear layers where that is cheaper, calibrated on some clips at their own length."""
    margin, share = recipe.trailing_silence.inference, recipe.student.encoder_low_rank_variance
    assert share is not None  # noqa: S101  else nothing is taken apart
    features = [family.features([u.wave()], u.seconds + margin) for u in calibration]
    before = parameters(model)
    count = family.factorize(model, features, share)
    log.info("encoder: %d linear layers became two low-rank ones each, %.1f of %.1f M parameters left", count, parameters(model) / 1e6, before / 1e6)  # fmt: skip


def corpus_vocabulary(
    family: Family, recipe: Recipe, utterances: Sequence[Utterance], labelled: LabelledDataset
) -> Vocabulary:
    """The tokens of the corpus's texts, those that every transcript needs, and the teachers' likeliest at each label."""
    tokens, targets = set(family.special_tokens()), recipe.targets
    for text, language in {(u.text, u.language) for u in utterances}:
        labels = family.tokens([text], [language]).labels
        tokens.update(labels[labels >= 0].tolist())
    for cache in labelled.caches:
        for key in labelled.keys:
            said = cache.read(key, states=False)
            tokens.update(likeliest(targets.kind, said.top_ids, said.top_logits, targets.top_k).flatten().tolist())
    vocabulary = Vocabulary(sorted(tokens), family.vocabulary_size)
    log.info("vocabulary: %s of %s tokens", f"{len(vocabulary):,}", f"{family.vocabulary_size:,}")
    return vocabulary
