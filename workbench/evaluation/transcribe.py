"""Transcribe a split with a torch model and score it: what validation during training does, and a study's arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.audio.decode import SAMPLE_RATE
from workbench.cache.tensor_shards import ShardStore
from workbench.core.hashing import cache_key
from workbench.core.locks import output_lock
from workbench.corpus import Utterance
from workbench.evaluation.scoring import score
from workbench.models import Family
from workbench.models.states import encode_waves

BATCH_CLIPS = 32
MAX_KEPT_BYTES = 1 << 30  # of encoder states in memory; beyond it they are recomputed each time


@dataclass(frozen=True)
class SplitTranscripts:
    """Transcripts of a split."""

    references: list[str]
    hypotheses: list[str]
    languages: list[str]  # of each clip

    def scores(self) -> dict[str, float]:
        """WER and CER in percent, each clip under its language's normalizer, and looping clips."""
        found = score(self.references, self.hypotheses, self.languages)
        return {"wer": round(found.wer, 3), "cer": round(found.cer, 3), "loops": float(found.loops)}


class EncodedClips:
    """Clips with a model's encoder states at their own length plus a margin, in batches of similar length.

    With a frozen encoder they are computed once and kept; with a folder too, for every run that begins with this encoder.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        family: Family,
        margin: float,
        frozen: bool = False,
        folder: Path | None = None,
    ) -> None:
        """Bind clips to their encoder.

        Args:
            utterances: the clips.
            family: the encoder's features.
            margin: seconds of silence after each.
            frozen: whether the encoder stays as it is.
            folder: where a frozen encoder's states are kept beyond this process.
        """
        self.utterances, self.family, self.margin = utterances, family, margin
        seconds = sum(u.seconds + margin for u in utterances)
        positions = seconds * SAMPLE_RATE / family.samples_per_position
        self.caches_states = frozen and positions * family.width * 4 < MAX_KEPT_BYTES
        self.store = ShardStore(folder) if self.caches_states and folder is not None else None
        self._kept: dict[tuple[int, ...], tuple[Tensor, list[float]]] = {}
        order = sorted(range(len(utterances)), key=lambda i: utterances[i].seconds)
        self.batches = [order[start : start + BATCH_CLIPS] for start in range(0, len(order), BATCH_CLIPS)]

    @torch.no_grad()
    def states(self, model: nn.Module, batch: Sequence[int]) -> tuple[Tensor, list[float]]:
        """Encoder states of a batch [clips, positions, width], and the clips' seconds."""
        key = tuple(batch)
        if key in self._kept:
            return self._kept[key]
        device = next(model.parameters()).device
        name = self._name(batch)
        if self.store is not None and name in self.store:
            states, seconds = self.store.read(name, ["states"])[0].to(device), self.store.index[name]["seconds"]
        else:
            waves = [self.utterances[i].wave() for i in batch]
            seconds = [len(wave) / SAMPLE_RATE for wave in waves]
            states, _ = encode_waves(self.family, model, waves, max(seconds) + self.margin, device)
        if self.caches_states:
            self._kept[key] = states, seconds
        return states, seconds

    def attention_mask(self, seconds: Sequence[float], device: torch.device) -> Tensor | None:
        """Positions that each clip of a batch has, given the clips' seconds; as `Family.attention_mask`."""
        samples = [round(each * SAMPLE_RATE) for each in seconds]
        mask = self.family.attention_mask(samples, max(seconds) + self.margin)
        return None if mask is None else mask.to(device)

    def _name(self, batch: Sequence[int]) -> str:
        """Key of a batch in the store; without one audio need not be hashed."""
        if self.store is None:
            return ""
        return cache_key([self.margin, *(self.utterances[i].audio_sha256() for i in batch)], 32)

    def fill(self, model: nn.Module, singly: bool = False) -> None:
        """Write to the folder, if there is one, what it lacks of the batches, or of each clip by itself."""
        if self.store is None:
            return
        batches = [[i] for group in self.batches for i in group] if singly else self.batches
        names = [self._name(batch) for batch in batches]
        with output_lock(self.store.folder, wait=True):
            self.store.reload()
            self.store.check(names)
            for batch, name in zip(batches, names, strict=True):
                if name not in self.store:
                    states, seconds = self.states(model, batch)
                    self.store.write(0, [({"key": name, "seconds": seconds}, {"states": states})])

    def padded(self, model: nn.Module, group: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Encoder states of some clips, each at its own length, and which positions each has.

        -> [clips, positions, width], bool [clips, positions]
        """
        each = [self.states(model, [i])[0][0] for i in group]
        lengths = torch.tensor([len(states) for states in each])
        attention_mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        return torch.nn.utils.rnn.pad_sequence(each, batch_first=True), attention_mask.to(each[0].device)


@torch.no_grad()
def validate(model: nn.Module, family: Family, utterances: Sequence[Utterance], margin: float) -> SplitTranscripts:
    """Transcribe greedily, unpadded but for `margin` seconds of silence."""
    return validate_encoded(model, EncodedClips(utterances, family, margin))


@torch.no_grad()
def validate_encoded(model: nn.Module, clips: EncodedClips) -> SplitTranscripts:
    """Transcribe clips greedily."""
    model.eval()
    hypotheses = [""] * len(clips.utterances)
    for batch in clips.batches:
        states, seconds = clips.states(model, batch)
        languages = [clips.utterances[i].language for i in batch]
        mask = clips.attention_mask(seconds, states.device)
        found = clips.family.decode(model, states, seconds, languages, attention_mask=mask)
        for i, text in zip(batch, found, strict=True):
            hypotheses[i] = text
    return SplitTranscripts([u.text for u in clips.utterances], hypotheses, [u.language for u in clips.utterances])
