"""The teacher's pass over the corpus, made once and kept on disk.

A clip's targets are its encoder states on the frames that the student will see too, the k largest logits and the
normalizer at each label, and the teacher's own task loss. They are keyed by teacher, audio, transcript and settings, so
a change of any makes new ones and nothing is ever invalidated by hand. Shards are safetensors; a line of index.jsonl is
appended after its shard is whole, so a kill loses at most the shard being filled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.audio import SAMPLE_RATE
from workbench.corpus import Utterance
from workbench.errors import UserError
from workbench.families.log_mel import positions_of
from workbench.families.protocol import IGNORED, Family, Tokens
from workbench.files import atomic_path, cache_dir, check_free_space, sha256_of
from workbench.objectives import cross_entropy

FORMAT = 1  # raise when the content of the shards changes
SHARD_CLIPS = 32


@dataclass(frozen=True)
class ClipTargets:
    """What the teacher says of one clip."""

    states: Tensor  # fp16 [positions, width]
    top_ids: Tensor  # int32 [labels, k]
    top_logits: Tensor  # fp32 [labels, k]
    log_normalizer: Tensor  # fp32 [labels]: logsumexp(logits / temperature)
    task_loss: float  # mean cross-entropy of the labels under the teacher


@dataclass(frozen=True)
class TargetSettings:
    """What targets depend on besides the clip."""

    teacher: str  # fingerprint of the checkpoint
    top_k: int
    temperature: float
    margin: float  # seconds of silence after the clip whose states are kept

    def key(self, utterance: Utterance) -> str:
        """Key of a clip's targets."""
        return sha256_of([utterance.audio_sha256(), utterance.text, utterance.language])[:32]

    def folder(self) -> Path:
        """Where they are kept."""
        return cache_dir() / "targets" / sha256_of([FORMAT, *self.__dict__.values()])[:16]


class TargetCache:
    """Targets on disk, read a clip at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, dict[str, Any]] = {}
        self._open: dict[str, Any] = {}
        for path in sorted(folder.glob("index-*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line that a kill cut short; its clips are computed again
                if (folder / entry["shard"]).is_file():
                    self.index[entry["key"]] = entry

    def __contains__(self, key: str) -> bool:
        return key in self.index

    def task_loss(self, key: str) -> float:
        """The teacher's own loss on a clip."""
        return float(self.index[key]["task_loss"])

    def read(self, key: str) -> ClipTargets:
        """Read a clip's targets; raises UserError if its shard is damaged."""
        from safetensors import SafetensorError, safe_open

        entry = self.index[key]
        path = self.folder / entry["shard"]
        try:
            if entry["shard"] not in self._open:
                self._open[entry["shard"]] = safe_open(path, framework="pt")
            names = ("states", "top_ids", "top_logits", "log_normalizer")
            tensors = [self._open[entry["shard"]].get_tensor(f"{key}.{name}") for name in names]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged ({error}); delete {self.folder} and run again") from None
        states, top_ids, top_logits, log_normalizer = tensors
        return ClipTargets(states, top_ids, top_logits, log_normalizer, float(entry["task_loss"]))


def compute_targets(
    teacher: Any,
    family: Family,
    utterances: Sequence[Utterance],
    settings: TargetSettings,
    batch_clips: int = 1,
    rank: int = 0,
    ranks: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Compute what the cache lacks of the utterances that fall to this rank; each rank writes its own shards.

    Args:
        teacher: the model, on its device.
        family: its features and tokens.
        utterances: the training set.
        settings: what the targets depend on.
        batch_clips: clips in one forward pass.
        rank: number of this process.
        ranks: how many processes there are.
        progress: called with the number of clips finished since the last call.

    Raises:
        UserError: the disk cannot hold the targets, or a clip cannot be used.
    """
    folder = settings.folder()
    cache = TargetCache(folder)
    missing = [u for u in utterances[rank::ranks] if settings.key(u) not in cache]
    if not missing:
        return
    check_free_space(folder, estimated_bytes(missing, settings, family.config.d_model), "the teacher's targets")
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob(f"shard-{rank:03d}-*.safetensors")))
    for shard in _chunks(missing, SHARD_CLIPS):
        tensors: dict[str, Tensor] = {}
        entries = []
        name = f"shard-{rank:03d}-{number:05d}.safetensors"
        for batch in _chunks(shard, batch_clips):
            for utterance, clip in zip(batch, _teacher_pass(teacher, family, batch, settings), strict=True):
                key = settings.key(utterance)
                tensors |= {
                    f"{key}.{field}": value for field, value in clip.__dict__.items() if isinstance(value, Tensor)
                }
                entries.append({"key": key, "id": utterance.id, "shard": name, "task_loss": clip.task_loss})
            progress(len(batch))
        _write_shard(folder, name, tensors, entries, rank)
        number += 1


def _write_shard(folder: Path, name: str, tensors: dict[str, Tensor], entries: list[dict[str, Any]], rank: int) -> None:
    from safetensors.torch import save_file

    with atomic_path(folder / name) as temporary:
        save_file(tensors, temporary)
    index = folder / f"index-{rank:03d}.jsonl"
    torn = index.is_file() and not index.read_bytes().endswith(b"\n")
    with index.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + "".join(json.dumps(entry) + "\n" for entry in entries))


@torch.no_grad()
def _teacher_pass(
    teacher: Any, family: Family, batch: Sequence[Utterance], settings: TargetSettings
) -> list[ClipTargets]:
    """One forward pass at 30 s, which is what the teacher was trained on."""
    device = next(teacher.parameters()).device
    waves = [utterance.wave() for utterance in batch]
    states = family.encode(teacher, family.features(waves, family.window_seconds, device))
    tokens = family.tokens([u.text for u in batch], [u.language for u in batch])
    on_device = Tokens(tokens.inputs.to(device), tokens.labels.to(device))
    logits = family.logits(teacher, states, on_device).float()  # [labels, vocabulary]
    losses = cross_entropy(logits, on_device.labels[on_device.labels != IGNORED])
    top = logits.topk(min(settings.top_k, logits.shape[-1]), -1)
    normalizer = (logits / settings.temperature).logsumexp(-1)
    counts = (tokens.labels != IGNORED).sum(1).tolist()
    out = []
    flat = (top.indices, top.values, normalizer, losses)
    pieces = zip(*(torch.split(values, counts) for values in flat), strict=True)
    for i, (ids, values, log_normalizer, loss) in enumerate(pieces):
        kept = positions_of(len(waves[i]) + round(settings.margin * SAMPLE_RATE))
        out.append(
            ClipTargets(
                states[i, :kept].half().cpu().contiguous(),
                ids.int().cpu().contiguous(),
                values.cpu().contiguous(),
                log_normalizer.cpu().contiguous(),
                float(loss.mean()),
            )
        )
    return out


def estimated_bytes(utterances: Iterable[Utterance], settings: TargetSettings, width: int) -> int:
    """Size of the targets on disk: states of each position and k logits of each token, at about 5 tokens a second."""
    total = 0
    for utterance in utterances:
        positions = positions_of(round((utterance.seconds + settings.margin) * SAMPLE_RATE))
        total += positions * width * 2 + int(5 * utterance.seconds + 5) * (8 * settings.top_k + 4)
    return total


def _chunks(items: Sequence[Utterance], size: int) -> list[Sequence[Utterance]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
