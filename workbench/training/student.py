"""The student that a run trains: built from the teacher or another checkpoint, its encoder factorized, its vocabulary narrowed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

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
from workbench.training.teaching.decoder_matching import stage_layers
from workbench.training.teaching.resident_teacher import check_reads_window
from workbench.training.teaching.teacher_ensemble import TeacherEnsemble

log = logging.getLogger("workbench")


def initial_student(recipe: Recipe, teachers: TeacherEnsemble, calibration: Sequence[Utterance]) -> nn.Module:
    """The student with all its teacher's tokens, before it is trained.

    Args:
        recipe: the run's recipe.
        teachers: the first one's family is the student's.
        calibration: clips that decide which of the encoder's linear layers are factorized.

    Raises:
        UserError: `student.init_from` is of another family, or the student does not match its teacher.
    """
    family = teachers.families[0]
    model: nn.Module = family.build_student(_origin(recipe, teachers), recipe.student)
    if recipe.student.encoder_low_rank_variance is not None:
        _compress(family, model, recipe, calibration)
    for name, teacher in zip(teachers.names, teachers.models, strict=True):
        if (matched := recipe.matched_keys(name)) or name == recipe.teacher:
            family.check_pair(model, teacher, matched)
    for name, stage in recipe.stages.items():
        number = teachers.number_of(name)
        if stage.teacher_adapter is not None:
            check_reads_window(recipe, name, "teacher_adapter", teachers.families[number])
        if stage.decoder_matching is not None:
            stage_layers(recipe, name, family, model, teachers.families[number], teachers.models[number])
    return model


def _origin(recipe: Recipe, teachers: TeacherEnsemble) -> nn.Module:
    """The model that the student's layers are copied from."""
    if recipe.student.init_from is None:
        return teachers.models[0]
    source, wanted = resolve_teacher(recipe.student.init_from), teachers.families[0].name
    if (family := open_family(source)).name != wanted:
        raise UserError(
            f"student.init_from {str(source)!r} is a {family.name} model, the teacher a {wanted} one; expected one family"
        )
    return family.load()


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
