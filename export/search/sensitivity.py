"""Sensitivity: how much a part's output changes on real clips when some of its layers change precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from export.graphs.step import SUPPRESSED_LOGIT
from workbench.audio.decode import Wave
from workbench.corpus import Utterance

if TYPE_CHECKING:
    from export.edge import Recognizer


class Probe:
    """A part's fp32 outputs on some clips, to compare others with: the encoder's keys, the decoder's first logits, a CTC head's logits."""

    def __init__(self, bundle: Path, part: str, clips: Sequence[Utterance]) -> None:
        from export.edge import Recognizer

        self.bundle, self.part = bundle, part
        self.recognizer = Recognizer(bundle, "fp32", check=False, vad=False)
        self.waves = [(u.wave(), u.language) for u in clips]
        self.expected = [self._output(self.recognizer, *given) for given in self.waves]

    def error(self, precision: str) -> float:
        """Mean over the clips of the largest difference from fp32, relative to the largest value."""
        from export.edge import Recognizer

        other = Recognizer(self.bundle, precision, check=False, vad=False)
        differences = [
            np.abs(self._output(other, *given) - expected).max() / max(float(np.abs(expected).max()), 1e-9)
            for given, expected in zip(self.waves, self.expected, strict=True)
        ]
        return float(np.mean(differences))

    def _output(self, recognizer: Recognizer, wave: Wave, language: str) -> npt.NDArray[np.float32]:
        if recognizer.ctc is not None:
            return recognizer.ctc.logits(wave)
        cross_kv = recognizer.model.cross_kv([wave])
        if self.part == "encoder":
            states: npt.NDArray[np.float32] = cross_kv[0].numpy()
            return states
        logits = recognizer.model.first_logits(cross_kv, language)
        return logits[logits > SUPPRESSED_LOGIT / 2]  # without suppressed tokens
