"""A student's fp32 bundle to which precisions are added one by one and measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.bundle.manifest import open_manifest, size_mb
from export.measurement.latency import BenchmarkResult, System
from export.measurement.timing import time_on
from export.quantization.int8 import Int8Options
from export.quantization.precisions import Precision
from export.quantization.quantize import quantize
from export.search.rows import Row
from export.search.sensitivity import Probe
from workbench.config.schemes import Scheme
from workbench.core.files import read_json, write_json
from workbench.core.progress import Progress
from workbench.corpus import Utterance
from workbench.evaluation.scoring import score_utterances

log = logging.getLogger("workbench")
FP32 = Scheme("fp32")
SENSITIVITY_CLIPS = 8


class Candidates:
    """A scratch bundle with our own runtime's graphs in every precision requested so far."""

    def __init__(self, bundle: Path, options: Int8Options, calibration: Sequence[npt.NDArray[np.float32]]) -> None:
        self.bundle, self.options, self.calibration = bundle, options, calibration
        manifest = open_manifest(bundle)
        self.content, self.has_ctc_head = manifest.content, manifest.has_ctc_head

    def add(self, precision: Precision) -> System:
        """Create a precision's graphs unless they exist; returns it as a system to be timed."""
        parts = dict(self.content["precisions"]["fp32"])
        for part, scheme in (("ctc", precision.encoder), ("encoder", precision.encoder), ("step", precision.decoder)):
            if part in parts:
                parts[part] = self._graph(parts[part], scheme)
        self.content["precisions"][precision.name] = parts
        write_json(self.bundle / "bundle.json", self.content)
        return System(precision.name, "student", self.bundle, precision.name)

    def measure(self, precisions: Sequence[Precision], clips: Sequence[Utterance], threads: int) -> dict[str, Row]:
        """Measure precisions, interleaved clip by clip; returns a row for each, by name."""
        systems = [self.add(precision) for precision in dict.fromkeys(precisions)]
        timed = time_on(systems, clips, threads)
        manifest = open_manifest(self.bundle)
        return {
            s.name: row(s.name, t, clips) | {"size_mb": round(size_mb(manifest, s.precision), 1)}
            for s, t in zip(systems, timed, strict=True)
        }

    def layer_errors(self, part: str, scheme: Scheme, clips: Sequence[Utterance]) -> list[float]:
        """Error of the part's output with only one layer in the scheme, for each layer: mean over clips, relative to fp32."""
        key = "num_hidden_layers" if part == "ctc" else f"{part}_layers"
        count = int(read_json(self.bundle / "config.json", "a bundle's configuration")[key])
        if count < 2:
            return []
        log.info("sensitivity of %d layers (%s) in %s", count, part, scheme.name)
        probe = Probe(self.bundle, part, clips[:SENSITIVITY_CLIPS])
        errors = []
        with Progress(f"layers of the {part} in {scheme.name}", count) as progress:
            for layer in range(count):
                others = tuple(i for i in range(count) if i != layer)
                system = self.add(quantize_only(part, Scheme(scheme.name, others)))
                errors.append(round(probe.error(system.precision), 5))
                self.content["precisions"].pop(system.precision)
                progress.advance()
        write_json(self.bundle / "bundle.json", self.content)
        return errors

    def _graph(self, name: str, scheme: Scheme) -> str:
        source = self.bundle / name
        target = source.parent / scheme.file(source.name)
        if not target.is_file():
            quantize(source, scheme, self.options, self.calibration)
        return target.relative_to(self.bundle).as_posix()


def quantize_only(part: str, scheme: Scheme) -> Precision:
    """A precision with one part in a scheme and the other, if there is one, in fp32."""
    if part == "ctc":
        return Precision(scheme, scheme)
    return Precision(scheme, FP32) if part == "encoder" else Precision(FP32, scheme)


def row(name: str, timed: BenchmarkResult, clips: Sequence[Utterance]) -> Row:
    """A system's measurements."""
    said = score_utterances(clips, timed.hypotheses)

    def middle(*stages: str) -> float:
        return round(float(np.median([sum(ms[s] for s in stages) for ms in timed.stages_ms])), 2)

    return {
        "name": name, "wer": round(said.wer, 3), "loops": said.loops, "p50_ms": middle(*timed.stages_ms[0]), "encoder_ms": middle("encoder"),
        "decoder_ms": middle("first_token", "rest"), "peak_rss_mb": round(timed.peak_rss_mb, 1),
    }  # fmt: skip
