"""Transcribe a split with a torch model and score it: what validation during training does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.corpus import Utterance
from workbench.families import Family
from workbench.scoring import score

BATCH_CLIPS = 8


@dataclass(frozen=True)
class Validation:
    """Transcripts of a split."""

    references: list[str]
    hypotheses: list[str]
    language: str

    def scores(self) -> dict[str, float]:
        """WER and CER in percent under Whisper's normalizer, and looping clips."""
        found = score(self.references, self.hypotheses, self.language)
        return {"wer": round(found.wer, 3), "cer": round(found.cer, 3), "loops": float(found.loops)}


@torch.no_grad()
def validate(model: Any, family: Family, utterances: Sequence[Utterance], margin: float) -> Validation:
    """Transcribe greedily at true length plus `margin` seconds of silence, in batches of similar length."""
    model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(utterances)), key=lambda i: utterances[i].seconds)
    hypotheses = [""] * len(utterances)
    for start in range(0, len(order), BATCH_CLIPS):
        batch = [utterances[i] for i in order[start : start + BATCH_CLIPS]]
        waves = [u.wave() for u in batch]
        seconds = [len(wave) / 16_000 for wave in waves]
        states = family.encode(model, family.features(waves, max(seconds) + margin, device))
        for i, text in zip(
            order[start:], family.decode(model, states, seconds, [u.language for u in batch]), strict=False
        ):
            hypotheses[i] = text
    language = utterances[0].language
    return Validation([u.text for u in utterances], hypotheses, language)
