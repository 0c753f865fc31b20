"""Whether the speech that a study also tests on (`test_also`) is speech of strangers: none of its clips, and none of its speakers, in the training speech."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from workbench.config.named_corpora import is_dataset
from workbench.config.recipe import load_recipe
from workbench.core.errors import UserError
from workbench.corpus import Utterance, scored_clips
from workbench.corpus.sources import meta_split
from workbench.study.plan import Study

log = logging.getLogger("workbench")
SHOWN = 3  # speakers, in a warning


def check_strangers(study: Study) -> None:
    """Compare the recordings of `test_also` with the training speech by content, whatever corpora and ids are called.

    Speakers' names mean something within a corpus only, so equal ones are a warning. Training speech of a hub's dataset is not
    compared: it would have to be fetched.

    Raises:
        UserError: a clip of `test_also` is trained on.
    """
    if not study.test_also:
        return
    limit = study.recipe.get("max_clips")
    trained: set[tuple[str, int | None]] = {(name, limit) for name in study.corpora}
    for settings in (study.recipe, *study.students.values(), *study.arms.values()):
        trained |= {(name, None) for name in settings.get("more_corpora", [])}
    if study.prepare is not None:
        first = load_recipe(study.prepare)
        trained |= {(first.corpus, first.max_clips), *((name, None) for name in first.more_corpora)}
    here = [(name, _trained_clips(name, most)) for name, most in sorted(trained, key=str) if not is_dataset(name)]
    for other in study.test_also:
        tested = {clip.audio_sha256(): clip for clip in scored_clips(other, study.split, limit)}
        speakers = {clip.speaker for clip in tested.values() if clip.speaker}
        for name, clips in here:
            if both := [clip for clip in clips if clip.audio_sha256() in tested]:
                raise UserError(
                    f"test_also names {other!r}, of which {len(both)} clips are in the training speech of {name!r}, the first: "
                    f"{both[0].place}; take them out of one of the two"
                )
            if same := sorted(speakers & {clip.speaker for clip in clips}):
                log.warning(
                    "test_also %s: %d of its speakers are called as speakers in the training speech of %s are (%s); if they are the same people, "
                    "its results are not those of strangers", other, len(same), name, ", ".join(same[:SHOWN]),
                )  # fmt: skip


def _trained_clips(corpus: str, limit: int | None) -> Sequence[Utterance]:
    return [*scored_clips(corpus, "train", limit), *meta_split(corpus, limit)]
