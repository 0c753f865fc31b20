"""Do a bundle's graphs compute what torch computes? At several lengths and batch sizes, because that is what breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export.edge.bundle import read_manifest
from workbench.audio import SAMPLE_RATE
from workbench.errors import UserError
from workbench.families.whisper import Whisper, encode
from workbench.families.whisper_tokens import prompt_ids

# (clips, seconds): exports that work at one length only are the most common defect of all
SHAPES = ((1, 0.5), (3, 3.0), (1, 7.0), (3, 9.5), (1, 29.0))
TOLERANCE = {"features": 2e-3, "encoder": 2e-3, "logits": 2e-3}  # fp32: largest difference over the largest value


def check_tensors(folder: Path, model: Any, family: Whisper, precisions: list[str]) -> dict[str, Any]:
    """Compare features, encoder states and first-token logits with torch.

    Args:
        folder: the bundle.
        model: the torch model that was exported.
        family: its features and tokens.
        precisions: which to compare; fp32 must agree, int8 is reported.

    Returns:
        For each precision and tensor the largest difference, relative to the tensor's largest value.

    Raises:
        UserError: an fp32 graph differs from torch by more than rounding.
    """
    return {precision: _compare(folder, model, family, precision) for precision in precisions}


def _compare(folder: Path, model: Any, family: Whisper, precision: str) -> dict[str, float]:
    import onnxruntime as ort

    manifest = read_manifest(folder)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    sessions = [
        ort.InferenceSession(str(manifest.graph(part, precision)), options, providers=["CPUExecutionProvider"])
        for part in ("frontend", "encoder", "decoder")
    ]
    worst = dict.fromkeys(TOLERANCE, 0.0)
    for clips, seconds in SHAPES:
        differences = _differences(sessions, model, family, clips, seconds)
        for name, difference in differences.items():
            worst[name] = max(worst[name], difference)
            if precision == "fp32" and not difference <= TOLERANCE[name]:
                raise UserError(
                    f"{folder}: {name} of the fp32 graph differ from torch by {difference:.1e} of their largest value at "
                    f"{clips} clips of {seconds} s, expected at most {TOLERANCE[name]:.0e}; please report this checkpoint"
                )
    return {name: float(f"{value:.2e}") for name, value in worst.items()}


@torch.no_grad()
def _differences(sessions: list[Any], model: Any, family: Whisper, clips: int, seconds: float) -> dict[str, float]:
    frontend, encoder, decoder = sessions
    # speech-like noise: bursts over silence, the same in every run
    generator = np.random.default_rng(0)
    waves = generator.normal(0, 0.1, (clips, round(seconds * SAMPLE_RATE))).astype(np.float32)
    waves *= np.abs(np.sin(np.arange(waves.shape[1]) / 4000.0)).astype(np.float32)
    features = family.features(list(waves), seconds)
    states = encode(model, features)
    ids = torch.tensor([prompt_ids(family.tokenizer, "en")] * clips)
    logits = model.proj_out(model.model.decoder(input_ids=ids, encoder_hidden_states=states).last_hidden_state)

    ours = frontend.run(None, {"waves": waves})[0]
    found = {"features": _relative(ours, features.numpy())}
    ours = encoder.run(None, {"input_features": features.numpy()})[0]
    found["encoder"] = _relative(ours, states.numpy())
    feed = {"input_ids": ids.numpy(), "encoder_hidden_states": states.numpy(), "use_cache_branch": np.array([False])}
    for past in decoder.get_inputs():
        if past.name.startswith("past_key_values"):
            feed[past.name] = np.zeros((clips, past.shape[1], 1, past.shape[3]), np.float32)
    found["logits"] = _relative(decoder.run(["logits"], feed)[0], logits.numpy())
    return found


def _relative(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-9))
