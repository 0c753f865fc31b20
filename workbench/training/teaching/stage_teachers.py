"""The teachers of one stage: its own or the recipe's, and those that teach in every stage.

A student that is much smaller than its teacher may learn more from one of a size in between (teacher assistants, arXiv 1902.03393). Here a
stage names its teacher, `stages.NAME.teacher`, in place of the recipe's, and the order of the stages is the order of the teachers. Our
interpretation: one student learns from all of them in turn, where the paper distils an assistant into a new student; `more_teachers` teach
in every stage; and the student is built from the recipe's teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from workbench.cache.labelled_dataset import LabelledDataset
from workbench.cache.teacher_targets import TargetCache
from workbench.config.recipe import Recipe
from workbench.corpus import Utterance
from workbench.training.teaching.resident_teacher import ResidentTeacher
from workbench.training.teaching.teacher_ensemble import TeacherEnsemble
from workbench.weighting import needs_uncertainty


@dataclass(frozen=True)
class StageTeachers:
    """Who teaches a stage, and what a stage needs of them."""

    members: tuple[int, ...]  # their numbers in `TeacherEnsemble`; weightings use the first one's loss
    weights: tuple[float, ...]  # of each in the distillation loss, adding up to 1
    uncertainty: Mapping[str, float] | None = None  # the first one's, by utterance id, where the weighting asks for it
    resident: ResidentTeacher | None = None  # the first one, where its decoder runs in the steps
    oracle: TargetCache | None = None  # targets of the stage's oracle teacher, in place of the members'

    def by_name(self, names: Sequence[str]) -> dict[str, float]:
        """Weight of each teacher by its name; `names` are the ensemble's."""
        return {names[number]: weight for number, weight in zip(self.members, self.weights, strict=True)}


def weighed_teachers(
    recipe: Recipe, teachers: TeacherEnsemble, validation: list[Utterance]
) -> dict[str, StageTeachers]:
    """The teachers of each stage with their weights, by the stage's name; `validation` decides weights that depend on WER."""
    members = {name: teachers.members(name) for name in recipe.stages}
    return {name: StageTeachers(own, teachers.shares(validation, own)) for name, own in members.items()}


def prepared_teachers(
    recipe: Recipe,
    teachers: TeacherEnsemble,
    weighed: Mapping[str, StageTeachers],
    dataset: LabelledDataset,
    gather: Callable[[dict[str, float]], dict[str, float]],
) -> dict[str, StageTeachers]:
    """Add what stages need of their own teacher besides its targets: its uncertainty, or itself in memory.

    Args:
        recipe: the run's recipe.
        teachers: all teachers, before they are dismissed.
        weighed: the teachers of each stage.
        dataset: the corpus.
        gather: joins the processes' dictionaries; all of them must call it.
    """
    uncertainties: dict[int, dict[str, float]] = {}
    residents: dict[int, ResidentTeacher] = {}
    prepared = {}
    for name, stage in recipe.stages.items():
        number = weighed[name].members[0]
        # an oracle teacher's is measured when it is trained
        unsure = needs_uncertainty(stage.weighting) and stage.oracle_teacher is None
        if unsure and number not in uncertainties:
            uncertainties[number] = gather(teachers.uncertainty(number, dataset))
        if stage.runs_teacher and number not in residents:
            residents[number] = teachers.resident(number, dataset)
        prepared[name] = replace(
            weighed[name],
            uncertainty=uncertainties[number] if unsure else None,
            resident=residents[number] if stage.runs_teacher else None,
        )
    return prepared
