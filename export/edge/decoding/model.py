"""A bundle's graphs as functions: waves to features, features to the encoder's output, the language, attention."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ..audio import SAMPLE_RATE, Wave
from ..bundle import BundleError, Manifest
from ..clock import Clock
from .cuda_graphs import CapturedShapes
from .decoder import DTYPES, DecoderSession, gives_several_logits, log_likelihood
from .drafted import passes_agree
from .memory import trim_while_loading
from .sessions import Provider, as_value, check_sessions, device_of, open_sessions, run_on_device, session_options

MASKED = -5e3  # logits below are masked (-1e4 is added to them)
REREAD = 64  # tokens of a transcript that are read again in one pass
POSITION_SAMPLES = 320  # samples of one encoder position: 20 ms


class Reading(NamedTuple):
    """What reading a transcript again tells of it."""

    attention: npt.NDArray[
        np.float32
    ]  # of the alignment heads before each token and before the end [tokens + 1, positions]
    # log-probabilities of the tokens and of the end [tokens + 1]; None where not asked for, or from a bundle of an earlier version
    likely: npt.NDArray[np.float64] | None


class SpeechModel:
    """The graphs of one precision, opened.

    Args:
        manifest: the bundle's.
        precision: one that the bundle holds.
        threads, providers, check, frugal, spin, cuda_graphs: as for `Recognizer`.

    Raises:
        BundleError: a graph is damaged, or onnxruntime lacks the first provider.
    """

    def __init__(
        self,
        manifest: Manifest,
        precision: str,
        threads: int | None = None,
        providers: Sequence[Provider] = ("CPUExecutionProvider",),
        check: bool = True,
        frugal: bool = False,
        spin: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        graphs = {part: manifest.graph(part, precision) for part in ("frontend", "encoder", "step")}
        if check:
            inside = manifest.folder.resolve()
            manifest.check([manifest.vocabulary, *(path.relative_to(inside).as_posix() for path in graphs.values())])
        with trim_while_loading() if frugal else nullcontext():
            opened = open_sessions(graphs, session_options(threads, spin), providers, cuda_graphs)
        check_sessions(opened, graphs, manifest)
        self.frontend, self.encoder, self.step = (opened[part] for part in graphs)
        content = manifest.content
        self.name = manifest.name
        self.pads_to_window: bool = content["length"] == "padded"
        self.silence_after, self.window = float(content["margin_seconds"]), float(content["window_seconds"])  # seconds
        self.prompts: dict[str, list[int]] = content["tokens"]["prompts"]
        self.end_token: int = content["tokens"]["end"]
        self.has_alignment_heads = bool((content.get("alignment") or {}).get("heads"))
        self._captured = self._new_captured(manifest) if cuda_graphs else None

    def _new_captured(self, manifest: Manifest) -> CapturedShapes:
        longest = max(
            len(prompt) + manifest.token_limit(self.window, language) for language, prompt in self.prompts.items()
        )
        return CapturedShapes(self.encoder, self.step, longest)

    def decoder(self, cross_kv: Sequence[ort.OrtValue], max_length: int, beams: int = 1) -> DecoderSession:
        """A decoder at its beginning, captured as a CUDA graph where that is wanted and possible; see `DecoderSession`."""
        captured = self._captured.decoder(cross_kv) if self._captured and beams == 1 else None
        return captured or DecoderSession(self.step, cross_kv, max_length, beams)

    def cross_kv(self, waves: Sequence[Wave], clock: Clock | None = None) -> list[ort.OrtValue]:
        """Keys and values of the encoder's output for every decoder layer, as onnxruntime's values [layers, clips, positions, width]."""
        clock = clock or Clock()
        features = self.features(waves)
        clock.lap("features")
        cross_kv = self.encode(features)
        clock.lap("encoder")
        return cross_kv

    def features(self, waves: Sequence[Wave]) -> ort.OrtValue:
        """Log-mel features of waves [samples], padded with silence as in training, as onnxruntime's value."""
        given = {"waves": as_value(self._padded(waves))}
        return run_on_device(self.frontend, given, ["input_features"])[0]

    def encode(self, features: ort.OrtValue) -> list[ort.OrtValue]:
        """Keys and values for the decoder's cross-attention, of the encoder's output for some features."""
        names = ["n_layer_cross_k", "n_layer_cross_v"]
        if self._captured:
            return self._captured.encode(features, names)
        cross_kv = run_on_device(self.encoder, {"input_features": features}, names)
        clips, found = features.shape()[0], [value.shape() for value in cross_kv]
        if any(len(shape) != 4 or shape[1] != clips for shape in found):
            raise BundleError(
                f"{self.name}: its encoder gives shapes {found} for {clips} clips; expected [layers, clips, positions, width]"
            )
        return cross_kv

    def first_logits(self, cross_kv: Sequence[ort.OrtValue], language: str) -> npt.NDArray[np.float32]:
        """Logits after the prompt, lowered at suppressed tokens. -> [1, vocabulary]"""
        prompt = np.array([self.prompts[language]], np.int64)
        return DecoderSession(self.step, cross_kv, prompt.shape[1])(prompt)

    @cached_property
    def takes_drafts(self) -> bool:
        """Whether its decoder can check the tokens of a draft in one pass; found out by a few passes, once."""
        return passes_agree(self.step)

    def suppressed_tokens(self) -> set[int]:
        """Tokens that the decoder never writes, whatever it hears: their logits are masked in its graph."""
        shape = {i.name: i.shape for i in self.step.get_inputs()}
        dtype = DTYPES[next(i.type for i in self.step.get_inputs() if i.name == "cross_k.0")]
        layers = sum(name.startswith("cross_k.") for name in shape)
        silence = [as_value(np.zeros((layers, 1, 2, shape["cross_k.0"][2]), dtype), device_of(self.step)) for _ in "kv"]
        decoder = DecoderSession(self.step, silence, 2)
        first = np.array([[next(iter(self.prompts.values()))[0]]], np.int64)
        decoder(first)  # some tokens are masked at the beginning alone
        return {int(token) for token in np.flatnonzero(decoder(first)[0] < MASKED)}

    def detect_languages(self, cross_kv: Sequence[ort.OrtValue]) -> list[str]:
        """Each clip's language: the one whose token is likeliest after the prompt's first token; for a model of one language, that language."""
        clips = int(cross_kv[0].shape()[1])
        if len(self.prompts) == 1:
            return list(self.prompts) * clips
        first = next(iter(self.prompts.values()))[0]
        logits = DecoderSession(self.step, cross_kv, 1)(np.full((clips, 1), first))
        codes = list(self.prompts)
        likely = logits[:, [self.prompts[code][1] for code in codes]].argmax(-1)
        return [codes[i] for i in likely]

    def reread(
        self, cross_kv: Sequence[ort.OrtValue], prompt: Sequence[int], tokens: Sequence[int], samples: int, likely: bool = True
    ) -> Reading:  # fmt: skip
        """Read a transcript again: where the alignment heads look, and how likely each token is.

        Args:
            cross_kv: keys and values of one clip.
            prompt: the decoder's prompt.
            tokens: the transcript.
            samples: length of the clip without the silence after it.
            likely: False where the attention alone is wanted.

        Returns:
            Attention before each token and before the end, of the positions that hold the clip, and their log-probabilities.
        """
        read = np.array([[*prompt, *tokens]], np.int64)
        decoder, before = DecoderSession(self.step, cross_kv, read.shape[1]), len(prompt) - 1
        likely = likely and gives_several_logits(self.step)
        chosen = np.array([*tokens, self.end_token])
        seen: list[npt.NDArray[np.float32]] = []
        found: list[npt.NDArray[np.float64]] = []
        for begin in range(0, len(chosen), REREAD):  # logits of a long text in one pass would take a gigabyte
            count = min(REREAD, len(chosen) - begin)
            part = read[:, (before + begin if begin else 0) : before + begin + count]
            attention, logits = decoder.attend(part, count if likely else 1)
            seen.append(attention[0, -count:])
            if likely:
                found.append(log_likelihood(logits[0], chosen[begin : begin + count]))
        whole = np.concatenate(seen)
        positions = max(2, round(whole.shape[1] * samples / self._padded_length(samples)))
        return Reading(whole[:, :positions], np.concatenate(found) if likely else None)

    def _padded(self, waves: Sequence[Wave]) -> npt.NDArray[np.float32]:
        """Waves with the silence after them that the model was trained with. -> [clips, samples]"""
        samples = self._padded_length(max(len(wave) for wave in waves))
        return np.stack([np.pad(wave, (0, samples - len(wave))) for wave in waves]).astype(np.float32)

    def _padded_length(self, samples: int) -> int:
        """Samples of a clip with the silence after it: a constant amount, or up to the whole window."""
        seconds = self.window if self.pads_to_window else min(samples / SAMPLE_RATE + self.silence_after, self.window)
        return -(-round(seconds * SAMPLE_RATE) // POSITION_SAMPLES) * POSITION_SAMPLES
