"""Schemes by name, of which a precision has one for the encoder and one for the decoder: `int8`, `q4`, `int8-0-5` (layers 0 and 5 stay in fp32)."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.core.errors import did_you_mean

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
# types of CTC models that other runtimes know; the graphs of WavLM, Parakeet and Whisper's encoder are called as the first one's
CALLED_TYPES = ("wav2vec2", "hubert")
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


def parse_scheme(text: str) -> Scheme:
    """Parse a scheme's label; raises ValueError if it is unknown."""
    name, *layers = text.strip().split("-")
    if name not in SUFFIXES:
        known = f"; its name here is {ALSO_CALLED[name]!r}" if name in ALSO_CALLED else did_you_mean(name, SUFFIXES)
        raise ValueError(f"no scheme {name!r}{known}")
    if layers and (name not in WITH_LAYERS or not all(layer.isdecimal() for layer in layers)):
        raise ValueError("expected numbers of layers to leave in fp32 after a quantized scheme")
    return Scheme(name, tuple(sorted({int(layer) for layer in layers})))
