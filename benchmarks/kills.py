"""Twenty kills at random moments of labelling, target caching and training: what is lost, and is the result the same?

    python benchmarks/kills.py --json FILE

Runs are killed with SIGKILL and started again with the same command. Lost is what was finished before a kill and had to be
done again, beyond the shard, batch or step that was being worked on. The result is compared bit for bit with that of a run
that nobody killed.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from common import arguments, finish, sample, small_teacher, workbench, write_manifest

LOOSE = [
    "--max-compression",
    "1000",
    "--min-confidence",
    "-1000",
    "--min-rate",
    "0",
    "--max-rate",
    "1000",
    "--max-wer",
    "100000",
]


def main() -> None:
    """Kill the labelling, then the distillation."""
    args = arguments(
        __doc__,
        labelling=(6, "kills while labelling"),
        training=(14, "kills while caching and training"),
        seed=(1, "of the moments"),
    )
    draw = random.Random(args.seed)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = sample(32)
        manifest = write_manifest(folder, clips)
        runs += labelling(folder, manifest, args.labelling, draw)
        runs += training(folder, manifest, small_teacher(folder / "teacher"), args.training, draw)
    figures = {
        "kills": float(hits(runs)),
        "lost": float(sum(r.get("lost", 0) for r in runs)),
        "identical": float(all(r["identical"] for r in runs if "identical" in r)),
    }
    finish(args.json, figures, runs)


def labelling(folder: Path, manifest: Path, kills: int, draw: random.Random) -> list[dict[str, Any]]:
    """Kill `workbench label`; a clip that stands twice in the journal was labelled twice."""

    def command(output: str) -> list[str]:
        return workbench(folder / "cache", "label", str(manifest), "-o", str(folder / output), "--batch", "2", *LOOSE)

    started = time.perf_counter()
    subprocess.run(command("whole.jsonl"), check=True, capture_output=True)
    whole = time.perf_counter() - started
    runs: list[dict[str, Any]] = []
    before: set[str] = set()
    while hits(runs) < kills:
        after = killed(command("killed.jsonl"), draw.uniform(0.1, 0.9) * whole)
        journal = [json.loads(line)["clip"] for path in folder.glob(".killed.jsonl.*.journal")
                   for line in path.read_text().splitlines() if line.endswith("}")]  # fmt: skip
        result = folder / "killed.jsonl"
        if result.is_file():  # it ended first, or all but: begin again, so that every kill hits something
            same = result.read_bytes() == (folder / "whole.jsonl").read_bytes()
            runs.append({"what": "labelling", "identical": same, **({"killed_after": after} if after else {})})
            result.unlink()
            before = set()
        else:
            lost = len(journal) - len(set(journal)) + len(before - set(journal))
            before = set(journal)
            runs.append({"what": "labelling", "killed_after": after, "labels": len(before), "lost": lost})
        print(runs[-1], flush=True)
    subprocess.run(command("killed.jsonl"), check=True, capture_output=True)
    same = (folder / "whole.jsonl").read_bytes() == (folder / "killed.jsonl").read_bytes()
    return [*runs, {"what": "labelling", "identical": same, "seconds_whole": whole}]


def training(folder: Path, manifest: Path, teacher: Path, kills: int, draw: random.Random) -> list[dict[str, Any]]:
    """Kill `workbench distill` with a checkpoint after every step; targets and steps must never become fewer."""
    stages = {"encoder": {"trainable": "encoder", "epochs": 2, "learning_rate": 1e-3, "batch_seconds": 12, "encoder_matching": 1.0, "decoding": False},
              "decoder": {"trainable": "decoder", "epochs": 2, "learning_rate": 1e-3, "batch_seconds": 12}}  # fmt: skip
    recipe = {"teacher": str(teacher), "corpus": str(manifest), "student": {"decoder_layers": 1}, "stages": stages,
              "ema": 0.9, "checkpoint_minutes": 1e-9, "augment": {"speeds": [0.9, 1.1], "noise_share": 0.5}}  # fmt: skip

    def command(name: str) -> list[str]:
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**recipe, "output": str(folder / name)}))
        return workbench(folder / f"cache-{name}", "distill", str(path))

    started = time.perf_counter()
    subprocess.run(command("whole"), check=True, capture_output=True)
    whole = time.perf_counter() - started
    runs: list[dict[str, Any]] = []
    labelled = step = 0
    while hits(runs) < kills:
        after = killed(command("killed"), draw.uniform(0.35, 0.95) * whole)
        now = sum(
            len(p.read_text().splitlines()) for p in (folder / "cache-killed" / "targets").glob("*/index-*.jsonl")
        )
        steps = [int(p.name.split("-")[1]) for p in (folder / "killed" / "checkpoints").glob("step-*")]
        if (folder / "killed" / "scores.json").is_file():  # it ended first, or all but
            runs.append({**compared(folder), **({"killed_after": after} if after else {})})
            for left in (folder / "killed", folder / "cache-killed"):
                shutil.rmtree(left)
            labelled = step = 0
        else:
            reached = max(steps, default=0)
            lost = max(0, labelled - now) + max(0, step - reached)
            labelled, step = now, reached
            runs.append({"what": "caching and training", "killed_after": after, "targets": now,
                         "checkpoint": reached, "lost": lost})  # fmt: skip
        print(runs[-1], flush=True)
    subprocess.run(command("killed"), check=True, capture_output=True)
    return [*runs, {**compared(folder), "seconds_whole": whole}]


def compared(folder: Path) -> dict[str, Any]:
    """Whether weights, metrics and the weights' log are the same bits."""
    import pyarrow.parquet as pq

    weights = [pq.read_table(folder / run / "weights.parquet") for run in ("whole", "killed")]
    same = {"weights.parquet": weights[0].equals(weights[1])}  # rows; how they are grouped in the file may differ
    for name in ("student/model.safetensors", "metrics.jsonl"):
        digests = {hashlib.sha256((folder / run / name).read_bytes()).hexdigest() for run in ("whole", "killed")}
        same[name] = len(digests) == 1
    return {"what": "caching and training", "identical": all(same.values()), "same": same}


def hits(runs: list[dict[str, Any]]) -> int:
    """Runs that were killed before they ended."""
    return sum("killed_after" in run for run in runs)


def killed(command: list[str], seconds: float) -> float | None:
    """Start a command and kill it after so many seconds; returns them, or None if it had ended by then."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return seconds
    if process.returncode:
        raise SystemExit(errors[-2000:])
    return None


if __name__ == "__main__":
    main()
