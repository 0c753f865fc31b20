"""Normalize padding inside the graph, so that the encoder sees the same input whatever a runtime pads with.

Some runtimes pad every clip to 30 s, some with zeros, which are not silence in Whisper's features, and some hardly at all. A student
trained on unpadded clips is slower and less accurate at 30 s; a stock Whisper needs exactly that. In features, digital silence equals the
clip's floor in every band: its largest value minus 2, or -1.5 if that is greater.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW_FRAMES = 3000  # 30 s
LEAST = -1.5  # log-mel of digital silence
NEAR_FLOOR = 1e-3  # a frame is silence if no band exceeds the floor by more than this


def trim_or_pad_silence(features: Tensor, margin_frames: int | None) -> Tensor:
    """Trim trailing silence, common to all clips, to a margin, or pad with silence to 30 s.

    Frames that are zero in every band count as silence, too: some runtimes pad with them.

    Args:
        features: log-mel features [clips, mels, frames].
        margin_frames: frames of silence to keep after the longest clip, for a length-adaptive model; None for one that reads 30 s.

    Returns:
        [clips, mels, an even number of frames], at most 3,000.
    """
    zero = (features == 0).all(1, keepdim=True)
    floor = torch.where(zero, torch.inf, features).amin((1, 2), keepdim=True)
    floor = torch.where(floor.isinf(), LEAST, floor)  # a clip of zeros only
    features = torch.where(zero, floor, features)
    if margin_frames is None:
        return torch.cat([features, floor.expand(-1, features.shape[1], WINDOW_FRAMES - features.shape[2])], 2)
    heard = (features > floor + NEAR_FLOOR).any(1).any(0)  # [frames]
    numbers = torch.arange(1, features.shape[2] + 1, device=features.device)
    last = (heard * numbers).amax()
    kept = (last + margin_frames + 1) // 2 * 2
    return features[:, :, :kept]
