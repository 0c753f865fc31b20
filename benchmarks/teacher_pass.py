"""The teacher's pass against the bare forward passes it must do, and the start of a run whose targets are cached.

    python benchmarks/teacher_pass.py --json FILE

Bare passes: encoder and decoder on batches whose features and tokens are ready. They take turns with the whole pass
(decoding, features, top-k, writing) over the same clips. Start: from calling the program to its first training step.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, finish, median, sample, timed, workbench, write_manifest

BATCH_CLIPS = 2


def main() -> None:
    """Measure both."""
    args = arguments(__doc__, clips=(24, "clips of a turn"), repeats=(4, "turns of each"), starts=(3, "warm starts"))
    with tempfile.TemporaryDirectory() as folder:
        runs = passes(args.clips, args.repeats, Path(folder))
        runs += starts(args.starts, Path(folder))
    bare, whole = median(runs, "seconds", what="bare passes"), median(runs, "seconds", what="whole pass")
    figures = {"overhead_ratio": whole / bare, "warm_start_seconds": median(runs, "seconds", what="warm start")}
    finish(args.json, figures, runs)


def passes(clips: int, repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Bare passes and whole ones, in turns."""
    os.environ["WORKBENCH_CACHE"] = str(folder / "passes")
    import torch

    from workbench.cache.decoded_audio import AudioCache
    from workbench.cache.teacher_targets import TargetCache, TargetSettings, compute_targets
    from workbench.models import open_family
    from workbench.models.resolve import resolve_teacher

    family = open_family(resolve_teacher("whisper-base"))
    teacher = family.load()
    utterances = sorted(sample(clips), key=lambda u: (u.seconds, u.id))
    batches = [utterances[i : i + BATCH_CLIPS] for i in range(0, clips, BATCH_CLIPS)]
    features = [family.features([u.wave() for u in b], 30.0) for b in batches]
    tokens = [family.tokens([u.text for u in b], [u.language for u in b]) for b in batches]

    @torch.no_grad()
    def bare() -> None:
        for f, t in zip(features, tokens, strict=True):
            family.logits(teacher, family.encode(teacher, f), t)

    def whole(turn: int) -> None:
        settings = TargetSettings(f"turn {turn}", 32, 1.0, 0.2)  # a cache of its own: nothing is there yet
        compute_targets(
            teacher, family, utterances, TargetCache(settings), BATCH_CLIPS, audio=AudioCache(folder / f"audio {turn}")
        )

    bare()
    runs = []
    for turn in range(repeats):
        runs.append({"what": "bare passes", "turn": turn, "clips": clips, "seconds": timed(bare)})
        runs.append(
            {"what": "whole pass", "turn": turn, "clips": clips, "seconds": timed(lambda turn=turn: whole(turn))}
        )
        print(runs[-2:], flush=True)
    return runs


def starts(repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Start the quickstart's recipe on a few clips, again and again with the same cache, until it says that it trains."""
    runs: list[dict[str, Any]] = []
    manifest = write_manifest(folder, sample(24))
    for turn in range(repeats + 1):
        command = workbench(folder / "starts", "distill", "quickstart", f"corpus={manifest}",
                            f"output={folder / f'run-{turn}'}")  # fmt: skip
        started = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("stage encoder:") and " steps in " in line:  # said just before the first step
                what = "warm start" if turn else "cold start, with the teacher's fetching and pass"
                runs.append({"what": what, "seconds": time.perf_counter() - started})
                print(runs[-1], flush=True)
                break
        else:
            raise SystemExit("the run did not reach its first step")
        process.kill()
        process.wait()
    return runs


if __name__ == "__main__":
    main()
