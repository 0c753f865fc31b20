"""The validation split during training: the student is scored on it, and the best one so far is kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from torch import Tensor, nn

from workbench.cache.encoder_cache import encoder_cache_folder
from workbench.core.machine.distributed import wait_for_all
from workbench.corpus import Utterance
from workbench.evaluation.transcribe import EncodedClips, validate_encoded
from workbench.models.students import save_student
from workbench.training.context import RunContext
from workbench.training.ema import MovingAverage
from workbench.training.quantization import Quantization
from workbench.training.teaching.self_teacher import SelfTeacher


class Validation:
    """Scores the student and keeps the best in `best/` of the run's folder.

    Args:
        context: the run's context.
        utterances: the validation split.
        whole_matrix: for a student that has only some tokens, the embedding of all of them.
        calibration: clips that the student's encoder was compressed on, if it was.
        meta: clips that the weighting looks ahead on, if it does.
    """

    best: dict[str, float] | None  # scores of the best student so far, from the checkpoint in a resumed run

    def __init__(
        self,
        context: RunContext,
        utterances: Sequence[Utterance],
        whole_matrix: Tensor,
        calibration: Sequence[Utterance] = (),
        meta: Sequence[Utterance] = (),
    ) -> None:
        self.context, self._utterances, self._calibration, self._meta = context, utterances, calibration, meta
        self._whole_matrix = whole_matrix
        self.best = None

    def clips(self, stage: str, encoder_frozen: bool) -> EncodedClips:
        """The validation clips of a stage, whose encoder states are kept where the encoder never changes."""
        return self._encoded(self._utterances, stage, encoder_frozen)

    def meta_clips(self, stage: str, encoder_frozen: bool) -> EncodedClips:
        """The clips that a stage's weighting looks ahead on, likewise."""
        return self._encoded(self._meta, stage, encoder_frozen)

    def _encoded(self, utterances: Sequence[Utterance], stage: str, encoder_frozen: bool) -> EncodedClips:
        context = self.context
        untrained = context.encoder_untrained(stage)
        settings = context.recipe.stages[stage].quantization
        folder = encoder_cache_folder(context.recipe, "evaluated", self._calibration, settings) if untrained else None
        return EncodedClips(
            utterances, context.family, context.recipe.trailing_silence.inference, encoder_frozen, folder
        )

    def __call__(
        self,
        stage: str,
        step: int,
        average: MovingAverage | None,
        clips: EncodedClips,
        quantization: Quantization,
        self_teacher: SelfTeacher | None = None,
    ) -> None:
        """Score the student, rounded as its stage rounds it, and keep it, not rounded, if it is the best so far. All processes must call it.

        A self-teacher is scored beside it: self-teaching can collapse, and that is where it would show first.

        Args:
            stage: name of the stage.
            step: number of optimizer steps done in the run.
            average: moving average of the student's parameters, which is scored instead.
            clips: as `clips` gave them.
            quantization: what the stage rounds.
            self_teacher: an earlier self of the student, while it learns from one.
        """
        with average.swapped_in() if average else nullcontext():
            model = self.context.whole_model(main_alone=True)
            if self.context.processes.is_main:
                with quantization.applied():
                    scores = validate_encoded(model, clips).scores()
                if self_teacher is not None and self_teacher.plan.kind != "intermediate":
                    scores["self_teacher_wer"] = validate_encoded(self_teacher.model, clips).scores()["wer"]
                self.context.log.validation(step, stage, scores)
                if self.best is None or (scores["wer"], scores["cer"]) < (self.best["wer"], self.best["cer"]):
                    self.best = {**scores, "step": step}
                    self.save_student(model)
        wait_for_all()

    def save_student(self, model: nn.Module) -> None:
        """Write a student as the best one."""
        context = self.context
        with context.family.full_vocabulary(model, self._whole_matrix):
            save_student(model, context.family, context.folder / "best", context.recipe.trailing_silence.inference)
