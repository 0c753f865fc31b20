"""The corpus's decoded audio, kept once, whatever teachers, targets and transcripts go with it.

A clip is kept as 16-bit samples at 16 kHz under the SHA-256 of its audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.cache.tensor_shards import Item, ShardStore, missing_by_shard
from workbench.core.disk import check_free_space
from workbench.core.hashing import cache_folder, cache_key
from workbench.core.locks import output_lock
from workbench.core.machine.host import usable_cpus
from workbench.corpus import Utterance

FORMAT = 1  # raise when decoding changes
LARGEST = 32767  # sample that stands for 1.0


def audio_bytes(seconds: Iterable[float]) -> int:
    """Bytes that decoded clips of these lengths take on disk."""
    return round(sum(seconds) * SAMPLE_RATE) * 2


class AudioCache:
    """Decoded clips on disk, read one at a time.

    Args:
        folder: where they are kept; by default where every run finds them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.store = ShardStore(folder or cache_folder("audio", [FORMAT, SAMPLE_RATE]))

    @staticmethod
    def key(utterance: Utterance) -> str:
        """Key of a clip."""
        return cache_key(utterance.audio_sha256(), 32)

    def __contains__(self, key: str) -> bool:
        return key in self.store

    def check(self, utterances: Sequence[Utterance], keys: Sequence[str], rank: int = 0, world_size: int = 1) -> None:
        """Remove what is damaged; all processes of a run must call it.

        Raises:
            UserError: a clip's length is not what its row states.
        """
        self.store.check(keys, rank, world_size)
        for utterance, key in zip(utterances, keys, strict=True):
            if key in self:
                utterance.check_stated(self.store.index[key]["samples"] / SAMPLE_RATE * utterance.speed)

    def missing_bytes(self, utterances: Sequence[Utterance], keys: Sequence[str]) -> int:
        """Bytes that the missing ones of the clips will take on disk."""
        missing = {key: u.seconds for u, key in zip(utterances, keys, strict=True) if key not in self}
        return audio_bytes(missing.values())

    def add(self, clips: Iterable[tuple[str, Wave]], rank: int = 0) -> None:
        """Write a shard of these clips, keys and waves, without those that are there already."""
        clips = [(key, wave) for key, wave in clips if key not in self.store]
        if not clips:
            return
        with output_lock(self.store.folder, wait=True, log_wait=False):  # other runs may write, too
            self.store.reload()
            samples = {key: to_samples(wave) for key, wave in clips if key not in self.store}
            items: list[tuple[Item, dict[str, Tensor]]] = [
                ({"key": key, "samples": len(values)}, {"wave": values}) for key, values in samples.items()
            ]
            if items:
                self.store.write(rank, items)

    def fill(
        self,
        utterances: Sequence[Utterance],
        keys: Sequence[str],
        rank: int = 0,
        world_size: int = 1,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Decode what is missing of this rank's share; raises UserError for audio that cannot be used."""
        own, own_keys = utterances[rank::world_size], keys[rank::world_size]
        check_free_space(self.store.folder, self.missing_bytes(own, own_keys), "the decoded audio")
        # stretches of one recording are cut one after another, so that it is decoded once
        whole = all(isinstance(u.audio, (Path, bytes)) for u in own)
        with ThreadPoolExecutor(max(1, usable_cpus() // world_size) if whole else 1) as pool:
            for shard in missing_by_shard(own_keys, self):
                waves = list(pool.map(lambda i: own[i].wave(), shard))
                self.add(zip([own_keys[i] for i in shard], waves, strict=True), rank)
                progress(len(shard))

    def read(self, key: str) -> Tensor:
        """A clip's samples. -> int16 [samples]; raises UserError if its shard is damaged."""
        return self.store.read(key, ["wave"])[0]


def to_samples(wave: Wave) -> Tensor:
    """A wave in [-1, 1] as 16-bit samples."""
    return torch.from_numpy((np.clip(wave, -1, 1) * LARGEST).round().astype(np.int16))


def to_wave(samples: Tensor) -> Tensor:
    """16-bit samples as a wave in [-1, 1], fp32."""
    return samples.float() / LARGEST


def prefetch_waves(batches: Sequence[Sequence[Utterance]]) -> Iterator[list[Wave]]:
    """Waves of each batch, the next one being decoded while the caller is busy with this one."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(_decode, batches[0])
        for following in [*batches[1:], []]:
            waves = coming.result()
            coming = pool.submit(_decode, following)
            yield waves


def _decode(batch: Sequence[Utterance]) -> list[Wave]:
    return [utterance.wave() for utterance in batch]
