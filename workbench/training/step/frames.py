"""Targets at the frames of a student with a CTC head, which has other frames than its teachers where the silence after a clip differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from workbench.cache.teacher_targets import ClipTargets


def at_frames(targets: ClipTargets, frames: int) -> ClipTargets:
    """A clip's targets at the first `frames` frames, with -1 for ids where the teacher has none.

    Of a teacher without a CTC head, no target is of use: there are then no tokens (k = 0) at any frame.
    """
    if targets.aligned is None:
        nothing = torch.empty(frames, 0)
        return replace(
            targets,
            top_ids=nothing.int(),
            top_logits=nothing,
            log_normalizer=torch.zeros(frames),
            aligned=torch.full((frames,), -1, dtype=torch.int32),
        )
    return replace(
        targets,
        top_ids=_fitted(targets.top_ids, frames, -1),
        top_logits=_fitted(targets.top_logits, frames, 0),
        log_normalizer=_fitted(targets.log_normalizer, frames, 0),
        aligned=_fitted(targets.aligned, frames, -1),
    )


def aligned_and_taught(teachers: Sequence[Sequence[ClipTargets]]) -> tuple[Tensor, Tensor]:
    """What the first teacher aligns to each frame of all clips, and which frames each teacher has targets for.

    teachers: the targets of each teacher's clips, as `at_frames` gives them. -> int64 [frames]; bool [teachers, frames], or empty if no teacher ran
    """
    aligned = torch.cat([t.aligned for t in teachers[0] if t.aligned is not None]).long()
    if not teachers[0][0].top_ids.shape[1]:
        return aligned, torch.empty(0)
    return aligned, torch.stack([torch.cat([t.top_ids[:, 0] >= 0 for t in said]) for said in teachers])


def _fitted(rows: Tensor, frames: int, filler: int) -> Tensor:
    """Cut or extended to a number of rows. [rows, ...] -> [frames, ...]"""
    kept = rows[:frames]
    return pad(kept, (*[0, 0] * (rows.dim() - 1), 0, frames - len(kept)), value=filler)
