"""Ten times the corpus: ten times the time, the same memory?

    python benchmarks/scaling.py --json FILE

Runs the whole training (teacher's pass, then an epoch) on a corpus and on one of ten times as many recordings, in turns,
each in a process of its own, once from a manifest and once streamed. The model is small and random, so that the engine's
own work and memory show. Time is that of labelling and training, without the program's start and the validation.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import arguments, finish, median, sample, small_teacher, workbench

FACTOR = 10
SOURCES = 24  # recordings that both corpora repeat, so often that the largest batch is as large in both
CLIPS_A_FILE = 60  # of the Parquet files; a larger dataset has more files, not larger ones


def main() -> None:
    """Build the corpora, run, compare."""
    args = arguments(__doc__, clips=(120, "clips of the smaller corpus"), repeats=(2, "turns of each"))
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher = small_teacher(folder / "teacher")
        sizes = (args.clips, FACTOR * args.clips)
        for size in sizes:
            corpus(folder / str(size), size)
        for turn in range(args.repeats):
            for streamed in (False, True):
                for size in sizes:
                    runs.append({"streamed": streamed, "clips": size, "turn": turn,
                                 **run(folder, teacher, size, streamed, f"{turn}")})  # fmt: skip
                    print(runs[-1], flush=True)
    figures = {}
    for streamed, suffix in ((False, ""), (True, "_streamed")):
        for key, label in (("seconds", "time"), ("peak_bytes", "memory")):
            small, large = (median(runs, key, streamed=streamed, clips=size) for size in sizes)
            figures[f"{label}_ratio_10x{suffix}"] = large / small
    finish(args.json, figures, runs)


def corpus(folder: Path, clips: int) -> None:
    """So many recordings, each a built-in one with faint noise of its own; as a manifest and as Parquet to stream."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Audio, Features, Value

    from workbench.audio.decode import write_wav
    from workbench.corpus import open_corpus

    draw = np.random.default_rng(clips)
    (folder / "data").mkdir(parents=True)
    source = sample(SOURCES)
    waves = [u.wave() for u in source]
    rows = []
    for i in range(clips):
        wave = waves[i % len(waves)] + 1e-3 * draw.standard_normal(len(waves[i % len(waves)])).astype(np.float32)
        path = folder / f"{i:06d}.wav"
        write_wav(path, wave)
        rows.append(
            {"audio": path.name, "text": source[i % len(source)].text, "duration": len(wave) / 16_000, "split": "train"}
        )
    held = open_corpus("prompts-en", "validation", 4)
    rows += [{"audio": str(u.audio), "text": u.text, "duration": u.seconds, "split": "validation"} for u in held]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema = Features({"audio": Audio(), "text": Value("string")}).arrow_schema
    for split in ("train", "validation"):
        chosen = [row for row in rows if row["split"] == split]
        for number, start in enumerate(range(0, len(chosen), CLIPS_A_FILE)):
            part = chosen[start : start + CLIPS_A_FILE]
            columns = {
                "audio": [{"bytes": (folder / row["audio"]).read_bytes(), "path": None} for row in part],
                "text": [row["text"] for row in part],
            }
            table = pa.table(columns, schema=schema)
            pq.write_table(table, folder / "data" / f"{split}-{number:05d}.parquet", row_group_size=30)


def run(folder: Path, teacher: Path, clips: int, streamed: bool, turn: str) -> dict[str, Any]:
    """One training run in a process of its own; seconds of labelling and training, and the process's peak memory."""
    output = folder / f"run-{clips}-{streamed}-{turn}"
    stage = {"trainable": "all", "epochs": 1, "learning_rate": 1e-4, "batch_seconds": 24, "micro_batches": 1}
    recipe: dict[str, Any] = {
        "output": str(output), "teacher": str(teacher), "corpus": str(folder / str(clips) / "manifest.jsonl"),
        "targets": {"teacher_batch_size": 4}, "stages": {"all": stage},
    }  # fmt: skip
    if streamed:
        recipe |= {"corpus": f"hf:{folder / str(clips) / 'data'}", "stream": {"window_hours": 0.03}}
        stage["steps"] = 1_000_000  # the stream's end comes first
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    script = (
        "import sys, logging; from pathlib import Path\n"
        "from workbench.config.recipe import load_recipe; from workbench.training.trainer import distill\n"
        "from workbench.core.machine.memory import peak_resident_bytes\n"
        "distill(load_recipe(Path(sys.argv[1])))\n"
        "print(peak_resident_bytes())\n"
    )
    workbench(folder / f"cache-{clips}-{streamed}-{turn}")  # sets the environment
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    scores = json.loads((output / "scores.json").read_text())
    return {"seconds": sum(scores["seconds"].values()), "parts": scores["seconds"],
            "peak_bytes": int(done.stdout.split()[-1]), "steps": scores["steps"]}  # fmt: skip


if __name__ == "__main__":
    main()
