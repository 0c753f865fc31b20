"""A model with a CTC head: one graph from a wave to logits every 20 ms (Parakeet: 80 ms), and the text that they spell."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ..audio import SAMPLE_RATE, Wave
from ..bundle import BundleError, Manifest
from ..bundle.tokens import Detokenizer
from ..clock import Clock
from ..words import WITHOUT_SPACES, Word
from .ctc_path import CtcPath, align, greedy_path, path_likelihood, words_of
from .decoder import log_softmax
from .memory import trim_while_loading
from .prefix_search import TextScores, prefix_beam_search
from .sessions import Provider, as_value, open_sessions, run_on_device, session_options

GRAPH = "ctc"
DEFAULT_BEAMS = 50  # with a language model or hotwords


class CtcModel:
    """The graph of one precision, opened.

    Args:
        manifest: the bundle's.
        precision: one that the bundle holds.
        threads, providers, check, frugal, spin: as for `Recognizer`.

    Raises:
        BundleError: the graph or the vocabulary is damaged, or onnxruntime lacks the first provider.
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
    ) -> None:
        content = manifest.content["ctc"]
        graphs = {GRAPH: manifest.graph(GRAPH, precision)}
        if check:
            inside = graphs[GRAPH].relative_to(manifest.folder.resolve()).as_posix()
            manifest.check([manifest.vocabulary, inside])
        with trim_while_loading() if frugal else nullcontext():
            self.session = open_sessions(graphs, session_options(threads, spin), providers, False)[GRAPH]
        self.name, self.blank, self.lower = manifest.name, int(content["blank"]), bool(content.get("lower"))
        self.detokenize = Detokenizer(manifest.path(manifest.vocabulary))
        self.silence_after = float(manifest.content["margin_seconds"])  # seconds, which the graph appends
        self.window = float(manifest.content["window_seconds"])  # seconds
        self.size = check_session(self.session, graphs[GRAPH].name, manifest)  # of the vocabulary
        if self.blank >= self.size:
            raise BundleError(
                f"{manifest.folder}: bundle.json says that token {self.blank} is the blank, but there are {self.size}"
            )

    def logits(self, wave: Wave) -> npt.NDArray[np.float32]:
        """Logits of one utterance, [samples] at 16 kHz. -> [positions, vocabulary]"""
        given = {"input_values": as_value(np.ascontiguousarray(wave[None], np.float32))}
        found: npt.NDArray[np.float32] = run_on_device(self.session, given, ["logits"])[0].numpy()
        fits = found.ndim == 3 and found.shape[0] == 1 and found.shape[1] >= 1 and found.shape[2] == self.size
        if not fits or not np.isfinite(found).all():
            raise BundleError(
                f"{self.name}: its graph gives logits of shape {found.shape}, or none that are finite; expected [1, positions, vocabulary]"
            )
        one: npt.NDArray[np.float32] = found[0]
        return one

    def transcribe(
        self, wave: Wave, clock: Clock, language: str, words: bool = False, beams: int = 1, scores: Sequence[TextScores] = ()
    ) -> tuple[str, tuple[int, ...], tuple[Word, ...], float | None]:  # fmt: skip
        """The text of one utterance, its tokens, and where words are asked for they and the tokens' mean log-probability.

        With `scores` of the text, which greedy decoding cannot take into account, one beam means DEFAULT_BEAMS.
        """
        logits = self.logits(wave)
        clock.lap("encoder")
        searched = beams > 1 or bool(scores)
        likely = log_softmax(logits) if searched or words else None
        if likely is None or not searched:
            path = greedy_path(logits, self.blank)
        else:
            found, _ = prefix_beam_search(likely, self.blank, beams if beams > 1 else DEFAULT_BEAMS, scores)
            path = align(likely, found, self.blank) if words else CtcPath(found, [], [])
            clock.lap("beams")
        text = self.text(path.tokens)
        timed: tuple[Word, ...] = ()
        logprob = None
        if words and likely is not None:
            log_probs = path_likelihood(likely, path)
            timed = tuple(self._words(path, np.exp(log_probs), len(wave), len(logits), language))
            logprob = float(log_probs.mean()) if len(log_probs) else None
        clock.lap("detokenize")
        return text, tuple(path.tokens), timed, logprob

    def text(self, tokens: Sequence[int]) -> str:
        """The text that tokens spell, with single spaces."""
        plain = " ".join(self.detokenize(tokens).split())
        return plain.lower() if self.lower else plain

    def spelled(self, words: Sequence[str]) -> list[str]:
        """Words in the case of the vocabulary's letters, if all of them have the same."""
        letters = {
            c for piece in self.detokenize.ids for c in piece.decode("utf-8", "replace") if c.lower() != c.upper()
        }
        if all(c == c.upper() for c in letters):
            return [word.upper() for word in words]
        return [word.lower() for word in words] if all(c == c.lower() for c in letters) else list(words)

    def _words(
        self, path: CtcPath, probabilities: npt.NDArray[np.float64], samples: int, positions: int, language: str
    ) -> list[Word]:
        """Words with the times of their first and last tokens, which a CTC head writes close to where they are heard, and the mean of their tokens' probabilities."""
        heard = min(samples / SAMPLE_RATE, self.window)
        each = min(heard + self.silence_after, self.window) / positions
        out: list[Word] = []
        for spelled, first, last in words_of(path, self.detokenize.bytes_of, language in WITHOUT_SPACES):
            text = spelled.decode("utf-8", "replace")
            start, end = min(first * each, heard), min((last + 1) * each, heard)
            of_tokens = [p for at, p in zip(path.first, probabilities, strict=True) if first <= at <= last]
            probability = round(float(np.mean(of_tokens)), 4)
            out.append(Word(text.lower() if self.lower else text, round(start, 3), round(end, 3), probability))
        return out


def check_session(session: ort.InferenceSession, file: str, manifest: Manifest) -> int:
    """The size of the vocabulary; raises BundleError where the graph lacks an input or output, or says no size."""
    known = {i.name for i in session.get_inputs()}, {o.name for o in session.get_outputs()}
    if known[0] != {"input_values"} or "logits" not in known[1]:
        raise BundleError(
            f"{manifest.folder / file}: expected the input input_values and the output logits; export the bundle again"
        )
    shape = next(o.shape for o in session.get_outputs() if o.name == "logits")
    if len(shape) != 3 or not isinstance(shape[2], int) or shape[2] < 2:
        raise BundleError(
            f"{manifest.folder / file}: its logits have shape {shape}; expected [batch, positions, vocabulary]"
        )
    return int(shape[2])
