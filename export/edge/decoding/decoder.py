"""From a decoder's logits to tokens: the likeliest at each step, or the likeliest of several beams, and what is kept of a loop.

A phrase that really is said again and again looks like a loop until the decoder goes on to what comes next. So nothing is stopped before
the token limit, which follows from the clip's length; only a transcript that ends there while repeating itself is a loop
(docs/decisions/0019-loops.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ..bundle.fields import check_shape
from ..bundle.manifest import BundleError
from .hotwords import BeamPlaces, HotwordPath, Hotwords
from .sessions import as_bundle_errors, as_value, device_of

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
PROJECT_FROM = "project_from"  # the step graph's input for logits of several positions; older bundles lack it
# excludes a run from CUDA graph capture (cuda_graphs.py) in sessions that capture; others ignore it
NOT_CAPTURED = ort.RunOptions()
NOT_CAPTURED.add_run_config_entry("gpu_graph_id", "-1")
# of the encoder's states: layers, clips, positions, width
MAX_STATES = (64, 4096, 3000, 8192)
MAX_CACHE = 8 << 30  # bytes of all caches; Whisper large takes 75 MB per clip
MIN_TIMES = 3  # repetitions of a phrase, and
MIN_REPEATED = 12  # tokens of all of them together, at least, for a loop: telephone numbers repeat a digit


@dataclass(frozen=True)
class Hypothesis:
    """Tokens of one clip."""

    tokens: list[int]
    finished: bool  # False where the token limit stopped it
    looped: bool = False  # whether it repeated itself up to the limit; one repetition is kept


class DecoderSession:
    """The decoder on some clips: caches that are written in place, keys and values of the states that are bound once.

    Args:
        session: the step graph.
        cross_kv: keys and values of the encoder's states, onnxruntime's values [layers, clips, positions, width].
        max_length: most tokens, the prompt's included.
        beams: rows for each clip.

    Raises:
        BundleError: the graphs do not fit each other, or caches would take too much memory.
    """

    def __init__(
        self, session: ort.InferenceSession, cross_kv: Sequence[ort.OrtValue], max_length: int, beams: int = 1
    ) -> None:
        wanted = {i.name: i.type for i in session.get_inputs()}
        layers, clips, _, width = fitting(cross_kv, wanted)
        if (needed := 2 * layers * clips * beams * max_length * width * 4) > MAX_CACHE:
            raise BundleError(f"the decoder's caches would take {needed} bytes; expected at most {MAX_CACHE}")
        self.session, self.binding, self.rows = session, session.io_binding(), clips * beams
        self.vocabulary = int(next(o.shape[1] for o in session.get_outputs() if o.name == "logits"))
        self.wanted = 1  # positions whose logits are bound
        self.project_from: ort.OrtValue | None = None  # a binding does not keep the values bound to it alive
        self.done = np.zeros(self.rows, np.int64)  # tokens in each row's caches
        self.cross_kv: list[ort.OrtValue] = []  # kept alive, too
        self.caches: dict[str, ort.OrtValue] = {}
        device = device_of(session)
        for kind, value in zip("kv", cross_kv, strict=True):
            if beams > 1 or value.data_type() != wanted["cross_k.0"]:
                cast = np.repeat(value.numpy().astype(DTYPES[wanted["cross_k.0"]], copy=False), beams, axis=1)
                value = as_value(cast, device)
            self.cross_kv.append(value)
            shape, dtype = (self.rows, max_length, width), DTYPES[wanted["cache_k.0"]]
            # on a CPU a value shares memory with its array: one array for each
            self.caches |= {f"{kind}.{i}": as_value(np.zeros(shape, dtype), device) for i in range(layers)}
        with as_bundle_errors("the bundle's step graph does not fit its encoder's"):
            self.bind_memory(self.binding)
            self.binding.bind_output("logits")
        self.place = len(self.caches)  # of the logits among the outputs, which come in the order of binding

    def bind_memory(self, binding: ort.IOBinding) -> None:
        """Give a binding the caches, and the keys and values of the states."""
        for name, cache in self.caches.items():
            binding.bind_ortvalue_input(f"cache_{name}", cache)
            binding.bind_ortvalue_output(f"next_{name}", cache)
        device = device_of(self.session)
        for kind, value in zip("kv", self.cross_kv, strict=True):
            layers, _, positions, width = value.shape()
            stride = value.tensor_size_in_bytes() // layers
            shape, dtype = [self.rows, positions, width], DTYPES[value.data_type()]
            for i in range(layers):
                # a layer of the encoder's output in place: nothing is copied, on any device
                binding.bind_input(f"cross_{kind}.{i}", device, 0, dtype, shape, value.data_ptr() + i * stride)

    def __call__(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Logits after some more tokens. [rows, tokens] -> [rows, vocabulary]"""
        return self._run(tokens, 1)

    def several(self, tokens: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float32]:
        """Logits after each of the last of some more tokens. [rows, tokens] -> [rows, count, vocabulary]"""
        return self._run(tokens, count).reshape(self.rows, count, -1)

    def _run(self, tokens: npt.NDArray[np.int64], wanted: int) -> npt.NDArray[np.float32]:
        """Logits after the last `wanted` tokens. [rows, tokens] -> [rows * wanted, vocabulary]"""
        given = np.ascontiguousarray(tokens, np.int64), self.done.copy()
        with as_bundle_errors("the bundle's step graph does not run"):
            self.binding.bind_cpu_input("input_ids", given[0])
            self.binding.bind_cpu_input("offset", given[1])
            if wanted != self.wanted:
                self.project_from = as_value(np.array([-wanted], np.int64))
                self.binding.bind_ortvalue_input(PROJECT_FROM, self.project_from)
                self.binding.bind_output("logits")  # the memory of the last pass has its shape
                self.wanted = wanted
            self.session.run_with_iobinding(self.binding, NOT_CAPTURED)
            self.done += tokens.shape[1]
            logits: npt.NDArray[np.float32] = self.binding.get_outputs()[self.place].numpy()
        if logits.ndim != 2 or len(logits) != self.rows * wanted or not logits.shape[1]:
            raise BundleError(
                f"the bundle's step graph gives logits of shape {logits.shape}; expected [{self.rows * wanted}, tokens]"
            )
        return logits

    def attend(
        self, tokens: npt.NDArray[np.int64], count: int = 1
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Cross-attention of the alignment heads before each of the next tokens, and logits after the last ones.

        Args:
            tokens: [rows, tokens].
            count: how many of the last tokens logits are wanted for; more than one needs a graph that `gives_several_logits`.

        Returns:
            Attention [rows, tokens, positions] and logits [rows, count, vocabulary].
        """
        with as_bundle_errors("the bundle's step graph does not return its attention"):
            self.binding.bind_output("alignment")
        logits = self.several(tokens, count)
        found: npt.NDArray[np.float32] = self.binding.get_outputs()[-1].numpy()
        if found.ndim != 3 or found.shape[:2] != tokens.shape or not found.shape[2]:
            raise BundleError(
                f"the bundle's step graph gives 'alignment' of shape {found.shape}; expected [rows, tokens, positions]"
            )
        return found.astype(np.float32, copy=False), logits

    def reorder(self, rows: npt.NDArray[np.intp]) -> None:
        """Let each row continue from another row's caches."""
        if np.array_equal(rows, np.arange(self.rows)):
            return
        for cache in self.caches.values():
            cache.update_inplace(np.ascontiguousarray(cache.numpy()[rows]))


def fitting(cross_kv: Sequence[ort.OrtValue], wanted: dict[str, str]) -> list[int]:
    """Shape of the keys and values of the states, checked: their places in memory are computed from it. Raises BundleError."""
    shapes = [list(value.shape()) for value in cross_kv]
    try:
        for shape in shapes:
            check_shape("the encoder's output", shape, [None] * 4, MAX_STATES)
    except ValueError as error:
        raise BundleError(str(error)) from None
    layers = sum(name.startswith("cache_k.") for name in wanted)
    types = {value.data_type() for value in cross_kv} | {wanted.get("cross_k.0", ""), wanted.get("cache_k.0", "")}
    if shapes[0] != shapes[1] or shapes[0][0] != layers or not types <= set(DTYPES):
        raise BundleError(
            f"the encoder gives keys and values of shapes {shapes} and types {sorted(types)} for a decoder of {layers} layers; export the bundle again"
        )
    return shapes[0]


def greedy(
    decoder: DecoderSession,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    end: int,
    first: Callable[[], None] = lambda: None,
    hotwords: Hotwords | None = None,
) -> list[Hypothesis]:
    """Write the likeliest token of each clip until its end or its limit.

    Args:
        decoder: with one row per clip.
        prompts: the prompt of each clip, all of one length.
        limits: most tokens of each clip.
        end: the token that ends a transcript.
        first: called when the first token of every clip has been computed.
        hotwords: words whose tokens are made likelier.
    """
    tokens = np.array(prompts, np.int64)
    written: list[list[int]] = [[] for _ in prompts]
    found: list[Hypothesis | None] = [None] * len(prompts)
    paths = [HotwordPath(hotwords) for _ in prompts] if hotwords else []
    while True:
        logits = decoder(tokens)
        chosen = logits.argmax(-1)
        if not any(written):
            first()
        for row in range(len(prompts)):
            if found[row] is not None:
                decoder.done[row] -= tokens.shape[1]  # it waits for the others
                continue
            if paths:
                chosen[row], replaced = paths[row].choose(logits[row], end)
                decoder.done[row] -= replaced
                del written[row][len(written[row]) - replaced :]
            if chosen[row] == end:
                found[row] = Hypothesis(written[row], True)
                continue
            written[row].append(int(chosen[row]))
            if len(written[row]) >= limits[row] and paths and paths[row].fork:  # a hotword that the limit cuts off
                chosen[row], replaced = paths[row].take_back()
                decoder.done[row] -= replaced - 1  # the last one has not been read yet
                written[row][len(written[row]) - replaced :] = [int(chosen[row])]
            if len(written[row]) >= limits[row]:
                found[row] = stopped(written[row])
        if all(found):
            return [one for one in found if one is not None]
        tokens = chosen[:, None]


def beam_search(
    decoder: DecoderSession, prompt: Sequence[int], limit: int, end: int, beams: int, hotwords: Hotwords | None = None
) -> Hypothesis:
    """Write the likeliest transcript of one clip that beam search finds, by mean log-probability of its tokens and the end.

    Args:
        decoder: with one row per beam.
        prompt: what every beam begins with.
        limit: most tokens.
        end: the token that ends a transcript.
        beams: number of hypotheses kept; the search stops when as many have ended.
        hotwords: words whose tokens are made likelier.
    """
    likely = log_softmax(decoder(np.array([prompt] * beams, np.int64)))[:1]  # the rows are still alike
    scores = np.zeros(1)
    written: list[list[int]] = [[]]
    ended: list[tuple[float, Hypothesis]] = []
    places = BeamPlaces(hotwords, end) if hotwords else None
    while True:
        if places:
            likely = places.raised(likely)
        totals = scores[:, None] + likely  # [beams, vocabulary]
        count = min(2 * beams, totals.size)
        best = np.argpartition(totals, -count, axis=None)[-count:]
        kept: list[tuple[float, int, list[int]]] = []
        for place in sorted(best, key=lambda place: -totals.flat[place]):
            row, token = divmod(int(place), totals.shape[1])
            total = float(totals[row, token])
            if total == -np.inf:
                break
            if token == end:
                ended.append((total / (len(written[row]) + 1), Hypothesis(written[row], True)))
            elif len(kept) < beams:
                kept.append((total, row, [*written[row], token]))
        if not kept or len(ended) >= beams or len(kept[0][2]) >= limit:
            ended += [(total / len(tokens), stopped(tokens)) for total, _, tokens in kept]
            # one that ended by itself is preferred to any that did not
            return max(ended, key=lambda one: (one[1].finished, one[0]))[1]
        to_spare = beams - len(kept)
        kept += [kept[-1]] * to_spare
        decoder.reorder(np.array([row for _, row, _ in kept]))
        scores = np.array([total for total, _, _ in kept])
        scores[beams - to_spare :] = -np.inf
        written = [tokens for _, _, tokens in kept]
        if places:
            places.go_on([(row, tokens[-1]) for _, row, tokens in kept])
        likely = log_softmax(decoder(np.array([[tokens[-1]] for tokens in written], np.int64)))


def stopped(tokens: list[int]) -> Hypothesis:
    """A transcript that the limit stopped: all of it, but only one repetition of a loop at its end."""
    excess = repeated(tokens)
    return Hypothesis(tokens[: len(tokens) - excess], False, excess > 0)


def repeated(tokens: Sequence[int]) -> int:
    """How many tokens at the end only repeat those before them, if there is a loop; else 0."""
    for unit in range(1, len(tokens) // MIN_TIMES + 1):
        same = 0  # tokens at the end that equal those a unit earlier
        while same + unit < len(tokens) and tokens[-1 - same] == tokens[-1 - same - unit]:
            same += 1
        if same + unit >= max(MIN_TIMES * unit, MIN_REPEATED):
            return same
    return 0


def gives_several_logits(step: ort.InferenceSession) -> bool:
    """Whether a step graph can give the logits of several positions; graphs of older bundles give those of the last one alone."""
    return any(i.name == PROJECT_FROM for i in step.get_overridable_initializers())


def log_likelihood(logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Log-probability of one token a row, row by row: all of them in fp64 would take much memory. [rows, vocabulary], [rows] -> [rows]"""
    return np.array([log_softmax(row)[token] for row, token in zip(logits, tokens, strict=True)])


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log-probabilities along the last axis."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    likely: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return likely
