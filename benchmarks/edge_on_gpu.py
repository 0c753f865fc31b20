"""A bundle's runtime on the GPU against the CPU: clip by clip in turns, in batches, with captured steps, and the texts compared.

    python benchmarks/edge_on_gpu.py --bundle BUNDLE --json FILE

The bundle wants the precisions fp32, fp16 and int8; onnxruntime-gpu has to be installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import arguments, finish, median, timed

SYSTEMS: dict[str, dict[str, Any]] = {
    "cpu int8": {"precision": "int8", "provider": "cpu"},
    "cpu fp32": {"precision": "fp32", "provider": "cpu"},
    "cuda fp32": {"precision": "fp32", "provider": "cuda"},
    "cuda fp16": {"precision": "fp16", "provider": "cuda"},
    "cuda fp32 tf32": {"precision": "fp32", "provider": "cuda", "options": {"use_tf32": "1"}},
    "cuda fp16 exhaustive": {
        "precision": "fp16",
        "provider": "cuda",
        "options": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    },
    "cuda fp16 captured": {"precision": "fp16", "provider": "cuda", "cuda_graphs": True},
}
BATCHES = (1, 8, 32)


def main() -> None:
    """Measure in turns and print the figures."""
    args = arguments(
        __doc__,
        bundle=("runs/quickstart/bundle", "the bundle"),
        clips=(60, "test clips"),
        turns=(3, "times that each is heard"),
    )
    from export.edge import Recognizer
    from workbench.corpus import open_corpus

    opened = {
        name: Recognizer(Path(args.bundle), how["precision"], providers=_providers(**how),
                         cuda_graphs=how.get("cuda_graphs", False), vad=False)
        for name, how in SYSTEMS.items()
    }  # fmt: skip
    clips = open_corpus("prompts-en", "test", args.clips)
    waves = [clip.wave() for clip in clips]
    seconds = sum(len(wave) for wave in waves) / 16_000
    texts: dict[str, list[str]] = {}
    runs: list[dict[str, Any]] = []
    for turn in range(args.turns + 1):  # the first warms up
        for number, wave in enumerate(waves):
            for name, recognizer in opened.items():
                said = recognizer.transcribe(wave)
                if turn:
                    runs.append({"system": name, "turn": turn, "clip": number, "ms": said.latency_ms})
                else:
                    texts.setdefault(name, []).append(said.text)
        for size in BATCHES:
            for name in ("cpu int8", "cuda fp32", "cuda fp16"):
                taken = timed(lambda name=name, size=size: opened[name].transcribe_batch(waves, most=size))
                if turn:
                    runs.append({"system": name, "turn": turn, "batch": size, "seconds": taken})
    figures: dict[str, float] = {"clips": len(waves), "audio_seconds": seconds}
    singles, batched = [r for r in runs if "ms" in r], [r for r in runs if "batch" in r]
    for name in opened:
        label = name.replace(" ", "_")
        figures[f"ms_a_clip_{label}"] = median(singles, "ms", system=name)
        figures[f"texts_as_cpu_fp32_{label}"] = sum(a == b for a, b in zip(texts[name], texts["cpu fp32"], strict=True))
        for size in sorted({r["batch"] for r in batched if r["system"] == name}):
            figures[f"rtfx_{label}_batch_{size}"] = seconds / median(batched, "seconds", system=name, batch=size)
    finish(args.json, figures, runs)


def _providers(provider: str, options: dict[str, str] | None = None, **_: Any) -> list[Any]:
    cuda = [("CUDAExecutionProvider", options or {})] if provider == "cuda" else []
    return [*cuda, "CPUExecutionProvider"]


if __name__ == "__main__":
    main()
