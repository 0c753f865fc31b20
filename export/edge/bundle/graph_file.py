"""What an ONNX file holds that must not be run from a stranger's bundle, found without the onnx package.

The file is read as protobuf's own reader does, message by message, and weights are skipped over. Refused are loops, which may never end;
functions and needlessly nested branches, which grow without bound when they are expanded; weights in other files, whose checksums are
not those of the bundle; and operators that load code or compiled engines. `workbench export` writes none of them.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# by the numbers of onnx.proto
GRAPH, FUNCTIONS, TRAINING = 7, 25, 20  # of a model
NODE, INITIALIZER, SPARSE = 1, 5, 15  # of a graph
OP_TYPE, ATTRIBUTE, DOMAIN = 4, 5, 7  # of a node
TENSOR, SUBGRAPH, TENSORS, SUBGRAPHS, SPARSE_TENSOR, SPARSE_TENSORS = 5, 6, 10, 11, 22, 23  # of an attribute
EXTERNAL, LOCATION = 13, 14  # of a tensor: `external_data`, and `data_location`, which is 1 for another file
LOOPS = {b"Loop", b"Scan", b"SequenceMap", b"BeamSearch", b"WhisperBeamSearch", b"GreedySearch", b"Sampling"}
LOADERS = {b"EPContext", b"Snpe", b"PythonOp", b"PyOp"}
# domains of the operators that every build of onnxruntime supports
DOMAINS = {b"", b"ai.onnx", b"com.microsoft", b"com.ms.internal.nhwc"}
DEEPEST = 4  # of branches in branches; a merged decoder has 1
MAX_FIELDS = 4_000_000  # in all, which takes seconds to read; Whisper large has a tenth of it
LARGEST = 2**31 - 1  # bytes of one protobuf

Field = tuple[int, int, int, int]  # number, wire type, and where its bytes begin and end, or its value twice


def unsafe_reason(path: Path) -> str | None:
    """Why a graph must not be run, in a few words; None if it may."""
    size = path.stat().st_size
    if not 0 < size <= LARGEST:
        return f"its size is {size} bytes; expected 1 to {LARGEST}"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _Reader(data).model()
        except ValueError as error:
            return str(error)
    return None


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.read = data, 0

    def model(self) -> None:
        graphs = 0
        for number, wire, begin, end in self.fields(0, len(self.data)):
            if number in (FUNCTIONS, TRAINING):
                raise ValueError("it has functions or a training graph, which `workbench export` never writes")
            if number == GRAPH and wire == 2:
                graphs += 1
                self.graph(begin, end, 0)
        if not graphs:
            raise ValueError("it is not an ONNX model; the file is damaged, copy the bundle again")

    def graph(self, begin: int, end: int, depth: int) -> None:
        if depth > DEEPEST:
            raise ValueError(f"it has branches in branches, more than {DEEPEST} deep")
        for number, wire, a, b in self.fields(begin, end):
            if wire != 2:
                continue
            if number == NODE:
                self.node(a, b, depth)
            elif number == INITIALIZER:
                self.tensor(a, b)
            elif number == SPARSE:
                self.sparse(a, b)

    def node(self, begin: int, end: int, depth: int) -> None:
        for number, wire, a, b in self.fields(begin, end):
            if wire != 2:
                continue
            if number == OP_TYPE and (op := self.data[a:b]) in LOOPS | LOADERS:
                why = "may never end" if op in LOOPS else "loads code"
                raise ValueError(f"it has the operator {op.decode()}, which {why}; `workbench export` never writes it")
            if number == DOMAIN and (domain := self.data[a:b]) not in DOMAINS:
                raise ValueError(f"it has an operator of the domain {domain[:80].decode('utf-8', 'replace')!r}")
            if number == ATTRIBUTE:
                self.attribute(a, b, depth)

    def attribute(self, begin: int, end: int, depth: int) -> None:
        for number, wire, a, b in self.fields(begin, end):
            if wire != 2:
                continue
            if number in (SUBGRAPH, SUBGRAPHS):
                self.graph(a, b, depth + 1)
            elif number in (TENSOR, TENSORS):
                self.tensor(a, b)
            elif number in (SPARSE_TENSOR, SPARSE_TENSORS):
                self.sparse(a, b)

    def sparse(self, begin: int, end: int) -> None:
        for number, wire, a, b in self.fields(begin, end):
            if number in (1, 2) and wire == 2:  # values and indices
                self.tensor(a, b)

    def tensor(self, begin: int, end: int) -> None:
        for number, _, value, _ in self.fields(begin, end):
            if number == EXTERNAL or (number == LOCATION and value):
                raise ValueError("its weights are in another file, which `workbench export` never writes")

    def fields(self, at: int, end: int) -> Iterator[Field]:
        """The fields of a message; raises ValueError where it is malformed."""
        while at < end:
            self.read += 1
            if self.read > MAX_FIELDS:
                raise ValueError(f"it has more than {MAX_FIELDS} fields")
            key, at = self.varint(at, end)
            number, wire = (key & 0xFFFFFFFF) >> 3, key & 7  # protobuf drops what a tag has beyond 32 bits
            if wire == 0:
                value, at = self.varint(at, end)
                yield number, wire, value, value
                continue
            if wire == 2:
                size, at = self.varint(at, end)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError("it is not an ONNX model; the file is damaged, copy the bundle again")
            if size > end - at:
                raise ValueError("it ends too early; the file is damaged, copy the bundle again")
            yield number, wire, at, at + size
            at += size

    def varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (1 << 64) - 1, at
        raise ValueError("it ends too early; the file is damaged, copy the bundle again")
