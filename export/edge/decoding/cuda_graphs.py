"""A decoder's step as one captured CUDA graph: launched as a whole instead of kernel by kernel.

A captured graph can be replayed only with the shapes and the memory that it was captured with. So whatever a step reads and writes is kept for
all clips of one shape: the keys and values of the encoder's states, caches, tokens and logits. A model that reads 30 s has one shape for each
size of batch; one that reads a clip at its own length has many, and gains only where lengths recur.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from .decoder import DecoderSession
from .sessions import as_value, device_of, run_on_device

MAX_SHAPES = 16  # shapes that are kept; clips of other shapes are decoded as usual


class CapturedSession(DecoderSession):
    """The decoder on clips of one shape. The prompt is read as usual, every token after it by the captured graph.

    Args:
        session: the step graph.
        cross_kv: as for `DecoderSession`; the next clip's keys and values must be written to the same memory.
        max_length: most tokens of any clip, the prompt's included.
        number: the graph's number, from 1; onnxruntime captures one graph for each number.
    """

    def __init__(
        self, session: ort.InferenceSession, cross_kv: Sequence[ort.OrtValue], max_length: int, number: int
    ) -> None:
        super().__init__(session, cross_kv, max_length)
        device = device_of(session)
        vocabulary = session.get_outputs()[0].shape[1]
        self.token = as_value(np.zeros((self.rows, 1), np.int64), device)
        self.offset = as_value(np.zeros(self.rows, np.int64), device)
        self.logits = as_value(np.zeros((self.rows, vocabulary), np.float32), device)
        self.fixed = session.io_binding()
        self.bind_memory(self.fixed)
        self.fixed.bind_ortvalue_input("input_ids", self.token)
        self.fixed.bind_ortvalue_input("offset", self.offset)
        self.fixed.bind_ortvalue_output("logits", self.logits)
        self.options = ort.RunOptions()
        self.options.add_run_config_entry("gpu_graph_id", str(number))

    def __call__(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Logits after some more tokens. [rows, tokens] -> [rows, vocabulary]"""
        if tokens.shape[1] != 1:
            return super().__call__(tokens)
        self.token.update_inplace(np.ascontiguousarray(tokens, np.int64))
        self.offset.update_inplace(self.done.copy())
        self.session.run_with_iobinding(self.fixed, self.options)
        self.done += 1
        logits: npt.NDArray[np.float32] = self.logits.numpy()
        return logits


class CapturedShapes:
    """What is kept for each shape of clips.

    Args:
        encoder, step: the graphs.
        max_length: most tokens of any clip, the prompt's included.
    """

    def __init__(self, encoder: ort.InferenceSession, step: ort.InferenceSession, max_length: int) -> None:
        self.encoder, self.step, self.max_length = encoder, step, max_length
        self.cross_kv: dict[tuple[int, ...], list[ort.OrtValue]] = {}  # by the shape of the features
        self.sessions: dict[tuple[int, ...], CapturedSession] = {}

    def encode(self, features: ort.OrtValue, names: Sequence[str]) -> list[ort.OrtValue]:
        """Keys and values of the states, which overwrite those of the previous clips of that shape."""
        shape = tuple(features.shape())
        found = run_on_device(self.encoder, {"input_features": features}, names, self.cross_kv.get(shape))
        if len(self.cross_kv) < MAX_SHAPES:
            self.cross_kv.setdefault(shape, found)
        return found

    def decoder(self, cross_kv: Sequence[ort.OrtValue]) -> CapturedSession | None:
        """The decoder for these keys and values, reset; None where their memory is not kept."""
        shape = next((s for s, kept in self.cross_kv.items() if kept[0].data_ptr() == cross_kv[0].data_ptr()), None)
        if shape is None:
            return None
        if shape not in self.sessions:
            self.sessions[shape] = CapturedSession(self.step, cross_kv, self.max_length, len(self.sessions) + 1)
        found = self.sessions[shape]
        found.done[:] = 0
        return found
