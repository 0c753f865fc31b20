"""Numerical parity of a bundle's graphs with torch, at several lengths and batch sizes, where exports usually break."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch

from export.edge.bundle.manifest import Manifest, read_manifest
from export.graphs.build import margin_frames
from export.graphs.padding import WINDOW_FRAMES, trim_or_pad_silence
from export.graphs.step import PROJECT_FROM
from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.core.errors import UserError
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.passes import encode

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from transformers import WhisperForConditionalGeneration

Floats = npt.NDArray[np.float16 | np.float32]
# (clips, seconds): exports that work for one length only are the most common defect
SHAPES = ((1, 0.3), (16, 3.0), (1, 7.0), (3, 9.5), (1, 29.0))
PADDED_SHAPES = ((1, 0.3), (3, 7.0), (1, 29.0))  # of a model that pads all of them to 30 s, so that fewer tell as much
TOLERANCE = 2e-3  # fp32: largest difference relative to the largest value
STEPS = 3  # tokens after the prompt


def check_tensors(
    folder: Path, model: WhisperForConditionalGeneration, family: Whisper, precisions: list[str]
) -> dict[str, dict[str, float]]:
    """Compare features, encoder states and every decoder's logits, for the prompt and later tokens, with torch.

    Args:
        folder: the bundle.
        model: the torch model that was exported.
        family: its features and tokens.
        precisions: which to compare; fp32 must agree, others are only reported.

    Returns:
        For each precision and tensor the largest difference, relative to the tensor's largest value.

    Raises:
        UserError: an fp32 graph differs from torch by more than rounding.
    """
    manifest = read_manifest(folder)
    margin = margin_frames(manifest.content["length"], manifest.content["margin_seconds"])
    shapes = PADDED_SHAPES if margin is None else SHAPES
    scenes = [_Scene(model, family, clips, seconds, margin) for clips, seconds in shapes]
    return {precision: _compare(manifest, scenes, precision) for precision in precisions}


def _compare(manifest: Manifest, scenes: Sequence[_Scene], precision: str) -> dict[str, float]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    sessions = {
        part: ort.InferenceSession(str(manifest.graph(part, precision)), options, providers=["CPUExecutionProvider"])
        for part in manifest.content["precisions"][precision]
    }
    worst: dict[str, float] = {}
    for scene in scenes:
        for name, difference in _differences(sessions, scene).items():
            if not np.isfinite(difference):
                raise UserError(not_comparable(manifest.folder, name, precision))
            worst[name] = max(worst.get(name, 0.0), difference)
            if precision == "fp32" and not difference <= TOLERANCE:
                raise UserError(
                    f"{manifest.folder}: {name} of the fp32 graph differ from torch by {difference:.1e} of the largest value for "
                    f"{len(scene.waves)} clips of {scene.seconds} s; expected at most {TOLERANCE:.0e}; please report this checkpoint"
                )
    return {name: float(f"{value:.2e}") for name, value in worst.items()}


def not_comparable(folder: Path, name: str, precision: str) -> str:
    """What is said of a graph that gives no numbers, which fp16 may, or a tensor of another shape."""
    return f"{folder}: {name} of the {precision} graph have values that are not finite, or another shape than torch's; choose other precisions"


def noise_bursts(generator: np.random.Generator, clips: int, seconds: float) -> Wave:
    """Clips that come and go like speech. -> [clips, samples]"""
    waves: Wave = generator.normal(0, 0.1, (clips, round(seconds * SAMPLE_RATE))).astype(np.float32)
    waves *= np.abs(np.sin(np.arange(waves.shape[1]) / 4000.0)).astype(np.float32)
    return waves


def relative_difference(ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating]) -> float:
    """The largest difference relative to the largest value of `theirs`; infinite for another shape, not a number where `ours` are none."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-9))


class _Scene:
    """Clips of speech-like noise bursts, the same in every run, and torch's outputs for them."""

    @torch.no_grad()
    def __init__(
        self, model: WhisperForConditionalGeneration, family: Whisper, clips: int, seconds: float, margin: int | None
    ) -> None:
        self.seconds = seconds
        generator = np.random.default_rng(0)
        self.waves = noise_bursts(generator, clips, seconds)
        features = family.features(list(self.waves), seconds)
        states = encode(model, trim_or_pad_silence(features, margin))
        prompt = family.prompt("en")
        written = generator.integers(0, family.eos_token_id, (clips, STEPS))
        self.prompt, self.margin = len(prompt), margin
        self.ids = np.concatenate([np.tile(prompt, (clips, 1)), written], 1)
        hidden = model.model.decoder(input_ids=torch.tensor(self.ids), encoder_hidden_states=states).last_hidden_state
        self.features, self.states = features.numpy(), states.numpy()
        self.logits = model.proj_out(hidden).numpy()  # [clips, tokens, vocabulary]
        # the graphs mask suppressed tokens, so leave them out
        self.said = np.setdiff1d(
            np.arange(self.logits.shape[2]), [*family.suppress_tokens, *family.begin_suppress_tokens]
        )

    def differ(self, logits: Floats, token: int) -> float:
        """Relative difference of logits [clips, vocabulary] from torch's at position `token`."""
        return relative_difference(logits[:, self.said], self.logits[:, token][:, self.said])


def _differences(sessions: Mapping[str, InferenceSession], scene: _Scene) -> dict[str, float]:
    names = ["n_layer_cross_k", "n_layer_cross_v", "last_hidden_state"]
    keys, values, states = _run(sessions["encoder"], names, {"input_features": scene.features})
    found = {
        "features": relative_difference(_run(sessions["frontend"], None, {"waves": scene.waves})[0], scene.features),
        "encoder": relative_difference(states, scene.states),
        "merged decoder": _largest(scene, _merged(sessions["decoder"], scene)),
        "step decoder": _largest(scene, _stepped(sessions["step"], scene, keys, values)),
        "step decoder, in one pass": _largest(scene, _in_one_pass(sessions["step"], scene, keys, values)),
        "sherpa decoder": _largest(scene, _as_sherpa(sessions["sherpa"], scene, keys, values)),
    }
    silence = np.zeros((*scene.features.shape[:2], WINDOW_FRAMES - scene.features.shape[2]), np.float32)
    padded = np.concatenate([scene.features, silence], 2)
    heard = _run(sessions["encoder"], ["last_hidden_state"], {"input_features": padded})[0]
    # padding by the runtime may lengthen the states by the margin at most
    found["padding"] = (
        relative_difference(heard[:, : scene.states.shape[1]], scene.states)
        if scene.margin is None
        else float(heard.shape[1] - scene.states.shape[1] > scene.margin)
    )
    return found


def _run(
    session: InferenceSession, names: Sequence[str] | None, given: Mapping[str, npt.NDArray[np.generic]]
) -> list[Floats]:
    return cast("list[Floats]", session.run(names, given))  # every output of ours holds floats


def _largest(scene: _Scene, steps: list[Floats]) -> float:
    return max(scene.differ(logits, scene.prompt - 1 + i) for i, logits in enumerate(steps))


def _pieces(scene: _Scene) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """The inputs of each decoder call, prompt first, then token by token, each with the number of tokens before it."""
    places = [0, *range(scene.prompt, scene.ids.shape[1] + 1)]
    return [(a, scene.ids[:, a:z]) for a, z in pairwise(places)]


def _merged(decoder: InferenceSession, scene: _Scene) -> list[Floats]:
    clips = len(scene.ids)
    past: dict[str, Floats] = {
        i.name: np.zeros((clips, i.shape[1], 1, i.shape[3]), np.float32)
        for i in decoder.get_inputs()
        if i.name.startswith("past_key_values")
    }
    names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    found = []
    for before, ids in _pieces(scene):
        feed: dict[str, npt.NDArray[np.generic]] = {
            "input_ids": ids,
            "encoder_hidden_states": scene.states,
            "use_cache_branch": np.array([before > 0]),
        }
        logits, *new = _run(decoder, names, {**feed, **past})
        # with a past, the cross-attention keys and values stay as they were
        past = {name: old if before and ".encoder." in name else now for (name, old), now in zip(past.items(), new, strict=True)}  # fmt: skip
        found.append(logits[:, -1])
    return found


def _stepped(decoder: InferenceSession, scene: _Scene, keys: Floats, values: Floats) -> list[Floats]:
    clips, (feed, caches), found = len(scene.ids), _memory(decoder, scene, keys, values), []
    names = list(caches)
    for before, ids in _pieces(scene):
        given = {"input_ids": ids, "offset": np.full(clips, before), **{f"cache_{n}": c for n, c in caches.items()}}
        logits, *new = _run(decoder, ["logits", *(f"next_{name}" for name in names)], feed | given)
        caches = dict(zip(names, new, strict=True))
        found.append(logits)
    return found


def _in_one_pass(decoder: InferenceSession, scene: _Scene, keys: Floats, values: Floats) -> list[Floats]:
    """The same logits from one call, as the tokens of a draft are checked."""
    clips, count = len(scene.ids), len(_pieces(scene))
    feed, caches = _memory(decoder, scene, keys, values)
    given = {"input_ids": scene.ids, "offset": np.zeros(clips, np.int64), PROJECT_FROM: np.array([-count])}
    (logits,) = _run(
        decoder, ["logits"], {**feed, **given, **{f"cache_{name}": cache for name, cache in caches.items()}}
    )
    return list(logits.reshape(clips, count, -1).swapaxes(0, 1))


def _memory(
    decoder: InferenceSession, scene: _Scene, keys: Floats, values: Floats
) -> tuple[dict[str, npt.NDArray[np.generic]], dict[str, Floats]]:
    """Inputs of the step decoder that stay the same, and its empty caches by name."""
    clips, layers, width = len(scene.ids), len(keys), keys.shape[3]
    dtype = np.float16 if any("float16" in i.type for i in decoder.get_inputs()) else np.float32
    feed: dict[str, npt.NDArray[np.generic]] = {
        f"cross_{kind}.{i}": part[i] for kind, part in (("k", keys), ("v", values)) for i in range(layers)
    }
    names = [f"{kind}.{i}" for i in range(layers) for kind in "kv"]
    caches: dict[str, Floats] = {name: np.zeros((clips, scene.ids.shape[1], width), dtype) for name in names}
    return feed, caches


def _as_sherpa(decoder: InferenceSession, scene: _Scene, keys: Floats, values: Floats) -> list[Floats]:
    inputs = {i.name: i for i in decoder.get_inputs()}
    layers, _, context, width = inputs["in_n_layer_self_k_cache"].shape
    own = [np.zeros((layers, len(scene.ids), context, width), np.float32)] * 2
    found = []
    for before, ids in _pieces(scene):
        given = (ids, *own, keys, values, np.array([before]))
        logits, *own = _run(decoder, None, dict(zip(inputs, given, strict=True)))
        found.append(logits[:, -1])
    return found
