"""What a model hears of a clip, made the same inside the graph whatever a runtime pads with.

Some runtimes pad every clip to 30 s, some with zeros, which are no silence in Whisper's features, and some hardly at all. A student
that was trained at true length is slower with 30 s and writes worse; a stock Whisper wants just that. In features digital silence
lies at the clip's floor in every band: its largest value less 2, or -1.5 if that is more.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW_FRAMES = 3000  # 30 s
LEAST = -1.5  # log-mel of digital silence
NEAR_FLOOR = 1e-3  # frames no band of which exceeds the floor by more are silence


def as_trained(features: Tensor, margin_frames: int | None) -> Tensor:
    """Cut the silence at the end of all clips down to a margin, or fill up the window with it.

    Frames that are zero in every band are taken for silence, too: what some runtimes pad with.

    Args:
        features: log-mel features [clips, mels, frames].
        margin_frames: frames of silence to leave after the longest clip, for a model that reads at true length; None for one
            that reads 30 s.

    Returns:
        [clips, mels, an even number of frames], at most 3,000.
    """
    zero = (features == 0).all(1, keepdim=True)
    floor = torch.where(zero, torch.inf, features).amin((1, 2), keepdim=True)
    floor = torch.where(floor.isinf(), LEAST, floor)  # of a clip that is all zeros
    features = torch.where(zero, floor, features)
    if margin_frames is None:
        return torch.cat([features, floor.expand(-1, features.shape[1], WINDOW_FRAMES - features.shape[2])], 2)
    heard = (features > floor + NEAR_FLOOR).any(1).any(0)  # [frames]
    numbers = torch.arange(1, features.shape[2] + 1, device=features.device)
    last = (heard * numbers).amax()
    kept = (last + margin_frames + 1) // 2 * 2
    return features[:, :, :kept]
