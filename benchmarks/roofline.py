"""How near a bundle comes to what the machine can do: the encoder to its matrix products, a decoder step to reading its weights.

Measured in turns in one process: the rate of a large matrix product in onnxruntime, the encoder; the speed of reading memory by all
threads, a decoder step. encoder_share is the encoder's rate over the product's; decoder_step_ratio a step's time over that of reading
the step graph's weights once.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, finish, median, timed

OPTIONS = {
    "bundle": ("runs/quickstart/bundle", "the bundle"),
    "precision": ("fp32", "its precision"),
    "threads": (2, "of the runtime"),
    "rounds": (15, "times that everything is measured"),
}
SECONDS = (1.0, 3.0, 5.0, 10.0, 20.0, 29.0)  # of the encoder's clips; the share is that of the second
STEPS = 16  # tokens written after a prompt
PRODUCT = (1024, 1024, 4096)
MEGABYTES = 400  # read at once: more than any cache


def main() -> None:
    """Measure in rounds and print the two figures."""
    options = arguments(__doc__, **OPTIONS)
    import torch

    from export.edge import Recognizer
    from workbench.core.errors import UserError
    from workbench.core.files import read_json

    torch.set_num_threads(options.threads)
    bundle = Path(options.bundle)
    recognizer = Recognizer(bundle, options.precision, options.threads, spin=True)
    if recognizer.manifest.has_ctc_head:
        raise UserError(f"{options.bundle}: has a CTC head and no decoder; name a bundle of a Whisper")
    product, memory = _product(options.threads), torch.zeros(MEGABYTES * 250_000)
    generator = np.random.default_rng(0)
    clips = {s: generator.normal(0, 0.1, int(16_000 * s)).astype(np.float32) for s in SECONDS}
    _round(recognizer, clips, product, memory)  # warms up
    runs = [run for _ in range(options.rounds) for run in _round(recognizer, clips, product, memory)]
    peak = 2 * np.prod([float(n) for n in PRODUCT]) / median(runs, "ms", what="product") / 1e6  # GFLOP/s
    gigabytes = MEGABYTES / median(runs, "ms", what="reading")  # GB/s
    rows = _lengths(runs, read_json(bundle / "config.json", "a bundle's configuration"), peak)
    weights = recognizer.manifest.graph("step", options.precision).stat().st_size / 1e6  # MB
    figures = {
        "encoder_share": rows[1]["encoder_share"],
        "decoder_step_ratio": rows[1]["step_ms"] / (weights / gigabytes),
        "peak_gflops": peak,
        "memory_gb_per_s": gigabytes,
        "step_weights_mb": weights,
    }
    finish(options.json, figures, runs, lengths=rows, precision=options.precision)


def _round(recognizer: Any, clips: dict[float, Any], product: Any, memory: Any) -> list[dict[str, Any]]:
    """Everything once for each length of clip, in turns."""
    from export.edge.decoding.decoder import DecoderSession

    runs = []
    for seconds, wave in clips.items():
        features = recognizer.model.features([wave])
        cross_kv = recognizer.model.encode(features)
        decoder = DecoderSession(recognizer.model.step, cross_kv, 4 + STEPS)
        decoder(np.array([recognizer.prompts["en"]]))
        works = {
            "product": product,
            "encoder": partial(recognizer.model.encode, features),
            "steps": partial(_write, decoder),
            "reading": memory.sum,
        }
        positions = int(cross_kv[0].shape()[2])
        runs += [
            {"what": what, "ms": 1000 * timed(work), "seconds": seconds, "positions": positions}
            for what, work in works.items()
        ]
    return runs


def _write(decoder: Any) -> None:
    for token in range(STEPS):
        decoder(np.array([[token]]))


def _lengths(runs: list[dict[str, Any]], config: Any, peak: float) -> list[dict[str, Any]]:
    """A row for each length of clip; prints them."""
    from export.measurement.flops import encoder_flops

    rows = []
    for seconds in SECONDS:
        positions = next(r["positions"] for r in runs if r["seconds"] == seconds)
        ms = median(runs, "ms", what="encoder", seconds=seconds)
        step = median(runs, "ms", what="steps", seconds=seconds) / STEPS
        rate = encoder_flops(config, positions) / ms / 1e6  # GFLOP/s
        rows.append({"seconds": seconds, "positions": positions, "encoder_ms": ms, "encoder_gflops": rate, "encoder_share": rate / peak, "step_ms": step})  # fmt: skip
        said = f"encoder {ms:.1f} ms, {rate:.0f} GFLOP/s, {rate / peak:.0%} of the peak; a step {step:.2f} ms"
        print(f"{seconds:4.0f} s: {said}")
    return rows


def _product(threads: int) -> Any:
    """To be called: a matrix product in onnxruntime, which is what the encoder's are made of."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    from export.edge.decoding.sessions import session_options

    m, k, n = PRODUCT
    shapes = {"a": (m, k), "b": (k, n), "c": (m, n)}
    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = session_options(threads, spin=True)  # a pool that spun on would slow the encoder, which comes next
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    left, right = (generator.normal(0, 1, shapes[name]).astype(np.float32) for name in "ab")
    return partial(session.run, None, {"a": left, "b": right})


if __name__ == "__main__":
    main()
