"""How a bundle's latency grows with a clip's length, shrinks with threads, and what batches bring.

Everything in turns in one process, clip by clip. Lengths: clips of validation speech joined and cut to each length. Batches: the
validation split in batches of each size; RTFx is seconds of speech over seconds of work, and batch 1 and the best batch are told apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, finish, median, timed

OPTIONS = {
    "bundle": ("runs/quickstart/bundle", "the bundle"),
    "precision": ("int8", "its precision"),
    "rounds": (7, "times that everything is measured"),
}
SECONDS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 25.0, 29.5)
THREADS = (1, 2)
BATCHES = (1, 2, 4, 8, 16)


def main() -> None:
    """Measure in rounds and print the figures."""
    options = arguments(__doc__, **OPTIONS)
    from export.edge import Recognizer
    from workbench.corpus import open_corpus

    recognizers = {n: Recognizer(Path(options.bundle), options.precision, n) for n in THREADS}
    waves = [u.wave() for u in open_corpus("prompts-en", "validation")]
    speech = np.resize(np.concatenate(waves), int(16_000 * (SECONDS[-1] + len(SECONDS))))
    clips = {s: speech[16_000 * i :][: int(16_000 * s)] for i, s in enumerate(SECONDS)}
    most = max(THREADS)
    _round(recognizers, clips, waves, most)  # warms up
    runs = [run for _ in range(options.rounds) for run in _round(recognizers, clips, waves, most)]
    lengths = [_length(runs, s) for s in SECONDS]
    rtfx = {n: sum(map(len, waves)) / 16_000 / median(runs, "seconds_taken", batch=n) for n in BATCHES}
    for row in lengths:
        print(f"{row['seconds']:5.1f} s: " + "  ".join(f"{n} thread(s) {row[f'ms_{n}']:7.1f} ms" for n in THREADS) + f"  {row['tokens']} tokens")  # fmt: skip
    print("RTFx by batch: " + "  ".join(f"{n}: {x:.1f}" for n, x in rtfx.items()))
    best = max(rtfx, key=lambda n: rtfx[n])
    grown = [row[f"ms_{most}"] / row["seconds"] for row in lengths]
    figures = {
        "ms_a_second_at_3_s": grown[SECONDS.index(3.0)],
        "ms_a_second_at_29_s": grown[-1],
        "growth_of_latency_1_to_29_s": lengths[-1][f"ms_{most}"] / lengths[0][f"ms_{most}"],
        "speedup_of_threads_at_3_s": lengths[SECONDS.index(3.0)]["ms_1"] / lengths[SECONDS.index(3.0)][f"ms_{most}"],
        "rtfx_batch_1": rtfx[1],
        "rtfx_best_batch": rtfx[best],
        "best_batch": best,
    }
    finish(options.json, figures, runs, lengths=lengths, rtfx_by_batch=rtfx, precision=options.precision)


def _round(recognizers: dict[int, Any], clips: dict[float, Any], waves: list[Any], most: int) -> list[dict[str, Any]]:
    """Every length with every number of threads, and the split in batches of every size, once."""
    runs: list[dict[str, Any]] = []
    for seconds, clip in clips.items():
        for threads, recognizer in recognizers.items():
            said = recognizer.transcribe(clip)
            runs.append({"seconds": seconds, "threads": threads, "ms": said.latency_ms, "tokens": len(said.tokens)})
    for size in BATCHES:
        taken = timed(lambda size=size: recognizers[most].transcribe_batch(waves, most=size))
        runs.append({"batch": size, "seconds_taken": taken})
    return runs


def _length(runs: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    row = {f"ms_{n}": median(runs, "ms", seconds=seconds, threads=n) for n in THREADS}
    return {"seconds": seconds, **row, "tokens": next(r["tokens"] for r in runs if r.get("seconds") == seconds)}


if __name__ == "__main__":
    main()
