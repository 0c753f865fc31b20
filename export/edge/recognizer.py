"""Transcribe waves with a bundle's graphs on onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from .audio import SAMPLE_RATE, AudioError, Wave
from .bundle import BundleError, Manifest, read_manifest
from .tokens import Detokenizer

AUTO = "auto"  # for a language
POSITION_SAMPLES = 320  # samples of one encoder position: 20 ms


@dataclass(frozen=True)
class Transcript:
    """What was said, and what it cost to find out."""

    text: str
    language: str  # as it was given, or found
    tokens: tuple[int, ...]
    stages_ms: dict[str, float]  # features, encoder, language where it was to be found, first_token, rest, detokenize
    finished: bool  # False when the decoder was stopped by the cap on tokens

    @property
    def latency_ms(self) -> float:
        """All stages together."""
        return sum(self.stages_ms.values())


class Recognizer:
    """A bundle opened in one precision.

    Args:
        bundle: folder that `workbench export` wrote.
        precision: one that the bundle holds; the first by default.
        threads: of onnxruntime; all cores by default.
        providers: of onnxruntime, in order of preference; the CPU by default.
        check: compare the graphs' SHA-256 with the manifest first.

    Raises:
        BundleError: the bundle is damaged, or has no such precision.
    """

    def __init__(
        self,
        bundle: str | Path,
        precision: str | None = None,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        check: bool = True,
    ) -> None:
        self.manifest: Manifest = read_manifest(bundle)
        self.precision = precision or self.manifest.precisions[0]
        graphs = {part: self.manifest.graph(part, self.precision) for part in ("frontend", "encoder", "step")}
        if check:
            inside = self.manifest.folder.resolve()
            self.manifest.check([path.relative_to(inside).as_posix() for path in graphs.values()])
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # three sessions share the cores: a pool that spins after its graph is done slows the next graph by a third
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads:
            options.intra_op_num_threads = threads
        try:
            self.frontend, self.encoder, self.step = (
                ort.InferenceSession(str(path), options, providers=list(providers)) for path in graphs.values()
            )
        except Exception as error:  # onnxruntime's errors have no common base
            raise BundleError(f"{bundle}: onnxruntime {ort.__version__} cannot load it ({error})") from error
        self.detokenize = Detokenizer(self.manifest.path("vocab.json"))
        content = self.manifest.content
        self.length: str = content["length"]
        self.margin, self.window = float(content["margin_seconds"]), float(content["window_seconds"])
        tokens = content["tokens"]
        self.prompts: dict[str, list[int]] = tokens["prompts"]
        self.end: int = tokens["end"]
        caches = [i for i in self.step.get_inputs() if i.name.startswith("cache_")]
        self.layers, self.width = len(caches) // 2, int(caches[0].shape[2])
        self.half = "float16" in caches[0].type

    def transcribe(self, wave: Wave, language: str = "en") -> Transcript:
        """Transcribe one utterance, [samples] at 16 kHz, of at most 30 s.

        Args:
            wave: the utterance.
            language: ISO 639-1 code, or `auto` to have it found.

        Raises:
            AudioError: the wave is empty, too long, or holds values that are not finite.
            BundleError: the model does not know the language.
        """
        seconds = self._checked(wave)
        self._known(language)
        clock = _Clock()
        crossed = self.states(wave, clock)
        if language == AUTO:
            language = self._detected(crossed)
            clock.lap("language")
        ids, finished = self._greedy(crossed, self.prompts[language], self.manifest.token_limit(seconds), clock)
        clock.lap("rest")
        text = self.detokenize(ids)
        clock.lap("detokenize")
        return Transcript(text, language, tuple(ids), clock.laps, finished)

    def states(self, wave: Wave, clock: _Clock | None = None) -> list[Any]:
        """Keys and values of the encoder's states for every decoder layer, as onnxruntime's values [layers, 1, positions, width]."""
        clock = clock or _Clock()
        features = self.features(wave)
        clock.lap("features")
        crossed = self.encode(features)
        clock.lap("encoder")
        return crossed

    def features(self, wave: Wave) -> Any:
        """Log-mel features of a wave [samples] with the silence that the model hears after it, as onnxruntime's value."""
        return self.frontend.run_with_ort_values(["input_features"], {"waves": _value(self._padded(wave)[None])})[0]

    def encode(self, features: Any) -> list[Any]:
        """Keys and values of the states of some features."""
        return list(
            self.encoder.run_with_ort_values(["n_layer_cross_k", "n_layer_cross_v"], {"input_features": features})
        )

    def first_logits(self, crossed: Sequence[Any], language: str) -> Any:
        """Logits after the prompt, those of suppressed tokens lowered. -> [1, vocabulary]"""
        return self.stepping(crossed, len(self.prompts[language]))(self.prompts[language])

    def _greedy(self, crossed: Sequence[Any], prompt: list[int], limit: int, clock: _Clock) -> tuple[list[int], bool]:
        """Write the likeliest token until the end or the limit."""
        stepping = self.stepping(crossed, len(prompt) + limit)
        ids: list[int] = []
        tokens = prompt
        while True:
            token = int(stepping(tokens)[0].argmax())
            if not ids:
                clock.lap("first_token")
            if token == self.end:
                return ids, True
            ids.append(token)
            if len(ids) >= limit:
                return ids, False
            tokens = [token]

    def stepping(self, crossed: Sequence[Any], room: int) -> Stepping:
        """The decoder before its first token on one clip's states, with room for so many tokens."""
        return Stepping(self.step, crossed, self.layers, self.width, room, np.float16 if self.half else np.float32)

    def _checked(self, wave: Wave) -> float:
        seconds = len(wave) / SAMPLE_RATE
        if wave.ndim != 1 or not len(wave):
            raise AudioError(f"the wave has shape {wave.shape}; expected [samples], at least one")
        if seconds > self.window:
            raise AudioError(f"the wave lasts {seconds:.1f} s; expected at most {self.window:.0f} s, split it first")
        if not np.isfinite(wave).all():
            raise AudioError("the wave holds values that are not finite")
        return seconds

    def _known(self, language: str) -> None:
        if language not in (AUTO, *self.prompts):
            raise BundleError(
                f"{self.manifest.name}: does not know language {language!r}; it knows {', '.join(self.prompts)}, or {AUTO}"
            )

    def _detected(self, crossed: Sequence[Any]) -> str:
        """The language whose token is likeliest after the first of the prompt; of a model for one language, that."""
        if len(self.prompts) == 1:
            return next(iter(self.prompts))
        first = next(iter(self.prompts.values()))[0]
        logits = self.stepping(crossed, 1)([first])[0]
        return max(self.prompts, key=lambda code: float(logits[self.prompts[code][1]]))

    def _padded(self, wave: Wave) -> Wave:
        """The wave with the silence after it that the model was trained with: a margin, or up to the whole window."""
        seconds = self.window if self.length == "padded" else min(len(wave) / SAMPLE_RATE + self.margin, self.window)
        samples = -(-round(seconds * SAMPLE_RATE) // POSITION_SAMPLES) * POSITION_SAMPLES
        return np.pad(wave, (0, samples - len(wave))).astype(np.float32)


class Stepping:
    """The decoder on one clip: caches that are written in place, keys and values of the states that are bound once."""

    def __init__(self, session: Any, crossed: Sequence[Any], layers: int, width: int, room: int, dtype: Any) -> None:
        self.session, self.binding, self.done = session, session.io_binding(), 0
        self.held: list[Any] = []  # a binding does not keep what it was given alive
        for kind, value in zip("kv", crossed, strict=True):
            of_layers = value.numpy().astype(dtype, copy=False)  # [layers, 1, positions, width]
            for i in range(layers):
                cross, cache = _value(of_layers[i]), _value(np.zeros((1, room, width), dtype))
                self.binding.bind_ortvalue_input(f"cross_{kind}.{i}", cross)
                self.binding.bind_ortvalue_input(f"cache_{kind}.{i}", cache)
                self.binding.bind_ortvalue_output(f"next_{kind}.{i}", cache)
                self.held += [cross, cache]
        self.binding.bind_output("logits")
        self.place = 2 * layers  # of the logits among the outputs, which come in the order of binding

    def __call__(self, tokens: Sequence[int]) -> Any:
        """Logits after some more tokens. -> [1, vocabulary]"""
        given = np.array([tokens], np.int64), np.array([self.done], np.int64)
        self.binding.bind_cpu_input("input_ids", given[0])
        self.binding.bind_cpu_input("offset", given[1])
        self.session.run_with_iobinding(self.binding)
        self.done += len(tokens)
        return self.binding.get_outputs()[self.place].numpy()


class _Clock:
    """Wall-clock time of consecutive stages, in ms; a stage timed twice adds up."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.at = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + 1000 * (now - self.at)
        self.at = now


def _value(array: Any) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(array)
