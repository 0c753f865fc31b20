"""How near a bundle comes to what the machine can do: the encoder to its matrix products, a decoder step to reading its weights.

Measured in turns in one process: the rate of a large matrix product in onnxruntime, the encoder; the speed of reading memory by all
threads, a decoder step. encoder_share is the encoder's rate over the product's; decoder_step_ratio a step's time over that of reading
the step graph's weights once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, finish, median

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
    from export.flops import encoder_flops
    from workbench.files import read_json

    torch.set_num_threads(options.threads)
    bundle = Path(options.bundle)
    config = read_json(bundle / "config.json", "a bundle's configuration")
    recognizer = Recognizer(bundle, options.precision, options.threads)
    product, left, right = _product(options.threads)
    memory = torch.zeros(MEGABYTES * 250_000)
    generator = np.random.default_rng(0)
    clips = {s: generator.normal(0, 0.1, int(16_000 * s)).astype(np.float32) for s in SECONDS}
    weights = recognizer.manifest.graph("step", options.precision).stat().st_size
    runs: list[dict[str, Any]] = []

    def keep(what: str, started: float, **more: Any) -> None:
        runs.append({"what": what, "ms": 1000 * (time.perf_counter() - started), **more})

    for number in range(options.rounds + 2):
        for seconds, wave in clips.items():
            started = time.perf_counter()
            product.run(None, {"a": left, "b": right})
            keep("product", started)
            features = recognizer.features(wave)
            started = time.perf_counter()
            crossed = recognizer.encode(features)
            keep("encoder", started, seconds=seconds, positions=int(crossed[0].shape()[2]))
            stepping = recognizer.stepping(crossed, 4 + STEPS)
            stepping(recognizer.prompts["en"])
            started = time.perf_counter()
            for token in range(STEPS):
                stepping([token])
            keep("steps", started, seconds=seconds)
            started = time.perf_counter()
            memory.sum()
            keep("reading", started)
        if number == 1:
            runs.clear()  # warmed up

    peak = 2 * np.prod([float(n) for n in PRODUCT]) / median(runs, "ms", what="product") / 1e6  # GFLOP/s
    gigabytes = MEGABYTES / median(runs, "ms", what="reading")  # GB/s
    rows = []
    for seconds in SECONDS:
        positions = next(r["positions"] for r in runs if r.get("seconds") == seconds and r["what"] == "encoder")
        ms = median(runs, "ms", what="encoder", seconds=seconds)
        step = median(runs, "ms", what="steps", seconds=seconds) / STEPS
        rate = encoder_flops(config, positions) / ms / 1e6
        rows.append({"seconds": seconds, "positions": positions, "encoder_ms": ms, "encoder_gflops": rate, "encoder_share": rate / peak, "step_ms": step})  # fmt: skip
        print(
            f"{seconds:4.0f} s: encoder {ms:.1f} ms, {rate:.0f} GFLOP/s, {rate / peak:.0%} of the peak; a step {step:.2f} ms"
        )
    reading = weights / 1e6 / gigabytes
    figures = {
        "encoder_share": rows[1]["encoder_share"],
        "decoder_step_ratio": rows[1]["step_ms"] / reading,
        "peak_gflops": peak,
        "memory_gb_per_s": gigabytes,
        "step_weights_mb": weights / 1e6,
    }
    finish(options.json, figures, runs, lengths=rows, precision=options.precision)


def _product(threads: int) -> tuple[Any, Any, Any]:
    """A matrix product in onnxruntime, which is what the encoder's are made of."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    m, k, n = PRODUCT
    shapes = {"a": (m, k), "b": (k, n), "c": (m, n)}
    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    left, right = (generator.normal(0, 1, shapes[name]).astype(np.float32) for name in "ab")
    return session, left, right


if __name__ == "__main__":
    main()
