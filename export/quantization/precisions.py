"""Precisions by name: `int8`, `fp32/int8` (encoder/decoder), `int8-0-5/q4` (the encoder's layers 0 and 5 stay fp32)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.core.errors import UserError, did_you_mean

# File name suffixes, following transformers.js and Optimum where they define one.
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized", "int8_static": "_int8", "w8": "_w8", "q4": "_q4"}
ALSO_CALLED = {
    "int4": "q4",
    "4bit": "q4",
    "q4f16": "q4",
    "q8": "int8",
    "8bit": "int8",
    "half": "fp16",
    "float16": "fp16",
    "float32": "fp32",
}
ENCODER_ONLY = ("int8_static",)  # the decoder's caches would need calibrated ranges of their own
WITH_LAYERS = ("int8", "int8_static", "w8", "q4")


@dataclass(frozen=True)
class Scheme:
    """How one graph is quantized, and which of its layers stay in fp32."""

    name: str
    kept: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """Its name within a precision's name."""
        return "-".join([self.name, *map(str, self.kept)])

    def file(self, graph: str) -> str:
        """File name of a graph: encoder_model.onnx, encoder_model_quantized.onnx, encoder_model_quantized_but_0_5.onnx."""
        but = "_".join(["_but", *map(str, self.kept)]) if self.kept else ""
        return graph.replace(".onnx", f"{SUFFIXES[self.name]}{but}.onnx")


@dataclass(frozen=True)
class Precision:
    """A scheme for the encoder's graph and one for the decoders' graphs."""

    encoder: Scheme
    decoder: Scheme

    @property
    def name(self) -> str:
        """The shortest name that parses to this precision."""
        both = self.encoder.label, self.decoder.label
        return both[0] if both[0] == both[1] else "/".join(both)


def parse_precision(text: str) -> Precision:
    """Parse a precision's name; raises UserError if it is unknown."""
    parts = text.strip().split("/")
    if len(parts) > 2:
        raise UserError(f"--precision {text!r}: expected one scheme, or two as encoder/decoder")
    schemes = [_scheme(part, text) for part in parts]
    if schemes[-1].name in ENCODER_ONLY:
        raise UserError(f"--precision {text!r}: {schemes[-1].name} is for the encoder; try {schemes[0].label}/int8")
    return Precision(schemes[0], schemes[-1])


def parse_precisions(names: Sequence[str]) -> list[Precision]:
    """Parse precisions, without duplicates, in the given order; raises UserError."""
    if not names:
        raise UserError(f"--precision is empty; expected some of {', '.join(SUFFIXES)}, or encoder/decoder")
    return list(dict.fromkeys(parse_precision(name) for name in names))


def _scheme(part: str, text: str) -> Scheme:
    name, *layers = part.split("-")
    if name not in SUFFIXES:
        where = "" if part == text else f": {name!r}"
        called = f"; its name here is {ALSO_CALLED[name]!r}" if name in ALSO_CALLED else did_you_mean(name, SUFFIXES)
        raise UserError(f"--precision {text!r}{where}{called}")
    if layers and (name not in WITH_LAYERS or not all(layer.isdigit() for layer in layers)):
        raise UserError(f"--precision {text!r}: expected numbers of layers to leave in fp32 after a quantized scheme")
    return Scheme(name, tuple(sorted({int(layer) for layer in layers})))
