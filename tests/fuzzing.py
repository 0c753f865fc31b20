"""Fuzzing: inputs that a program may be given by strangers, drawn until a time is up, and what it may do with them.

WORKBENCH_FUZZ_SECONDS says how long each fuzzer runs, a second by default. Draws follow fixed seeds, so that a failure comes again.
"""

from __future__ import annotations

import copy
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

SECONDS = float(os.environ.get("WORKBENCH_FUZZ_SECONDS", "1"))
EXAMPLES = 20  # in one round; the time is looked at between rounds
HANG_SECONDS = (
    120  # by the wall clock, and the first example of a fuzzer imports what it uses on a machine that may be busy
)
NUMBERS = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
ODD = [
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, 10**30, 10**400, -0.5, 1e308, float("nan"), float("inf"),
    "", " ", "0", "nan", "null", "1e9", "x" * 5000, "\ud800", "a\0b", "a\nb", "../../x", "/dev/zero", "\u2028", [], {}, [[]], [{}], {"": ""},
]  # fmt: skip


def fuzz(
    inputs: st.SearchStrategy[Any],
    check: Callable[[Any], object],
    megabytes: int = 2000,
    refusals: tuple[type[Exception], ...] = (),
) -> None:
    """Call `check` with drawn inputs for SECONDS; it raises what it must not.

    Args:
        inputs: what is drawn from.
        check: uses one input; an exception is a failure.
        megabytes: address space that it may take beyond what the process holds already.
        refusals: exceptions that are none, as long as their message is one line.
    """
    end = time.monotonic() + SECONDS
    rounds = 0
    with limited(megabytes):
        while not rounds or time.monotonic() < end:

            def one(given: Any) -> None:
                try:
                    with timed():
                        check(given)
                except refusals as error:
                    said = str(error)
                else:
                    said = ""
                assert "\n" not in said, said

            drawn = hypothesis.given(inputs)(one)
            hypothesis.seed(rounds)(settings()(drawn))()
            rounds += 1


def settings() -> hypothesis.settings:
    """Of a round: nothing is remembered between runs, and no example is too slow short of a hang."""
    return hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )


@contextmanager
def timed(seconds: float = HANG_SECONDS) -> Iterator[None]:
    """Raise TimeoutError in a block that hangs, at its next Python instruction."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def limited(megabytes: int) -> Iterator[None]:
    """Let the process take only so much more address space: an allocation beyond it fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@st.composite
def mutated(draw: st.DrawFn, samples: Sequence[bytes], head: int = 128) -> bytes:
    """One of `samples` with one to four faults, most of them in its first `head` bytes: numbers, bits, what is cut, doubled, added."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data), head)) | st.integers(0, len(data)))
        size = draw(st.integers(1, 16))
        kind = draw(st.sampled_from(["number", "number", "number", "bit", "bytes", "cut", "double", "add", "end"]))
        if kind == "number":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            order = draw(st.sampled_from(["little", "big"]))
            number = draw(st.sampled_from(NUMBERS)) % 256**width
            data[at : at + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == "bit" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "bytes":
            data[at : at + size] = draw(st.binary(min_size=size, max_size=size))
        elif kind == "cut":
            del data[at : at + size]
        elif kind == "double":
            data[at:at] = data[at : at + size] * draw(st.integers(1, 50))
        elif kind == "add":
            data[at:at] = draw(st.binary(max_size=size))
        elif kind == "end":
            del data[at:]
    return bytes(data)


def json_values() -> st.SearchStrategy[Any]:
    """Any value of JSON, odd ones above all."""
    leaves = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=20)
    nested = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
    return leaves | nested


@st.composite
def json_mutations(draw: st.DrawFn, value: Any) -> Any:
    """`value` with one to three of its parts, however deep, replaced by something else, removed or moved."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(draw(json_values()))
        parent, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "wrap", "exchange"]))
        if kind == "replace":
            parent[key] = copy.deepcopy(
                draw(json_values())
            )  # a later mutation must not change what others are drawn from
        elif kind == "remove":
            del parent[key]
        elif kind == "wrap":
            parent[key] = draw(st.sampled_from([[parent[key]], {"x": parent[key]}, str(parent[key])]))
        else:
            other, place = draw(st.sampled_from(places))
            parent[key] = copy.deepcopy(other[place])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
