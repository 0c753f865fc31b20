"""What benchmarks/kills.py kills: every long command, small, with what it writes and how that is compared."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from common import sample, small_teacher, write_manifest

FINISHED = 1_000_000  # progress of a command that removes its intermediate results at its end
LOOSE = ["--max-compression-ratio", "1000", "--min-logprob", "-1000", "--min-chars-per-second", "0", "--max-chars-per-second", "1000", "--max-wer", "100000"]  # fmt: skip
STAGES = {
    "encoder": {"trainable": "encoder", "epochs": 2, "learning_rate": 1e-3, "batch_seconds": 12,
                "encoder_matching": 1.0, "decoder_losses": False},
    "decoder": {"trainable": "decoder", "epochs": 2, "learning_rate": 1e-3, "batch_seconds": 12},
}  # fmt: skip
ENGINE = """
import argparse, math, struct, sys, time, wave
p = argparse.ArgumentParser()
for name in ("--model", "--output-dir", "--length-scale"):
    p.add_argument(name)
a = p.parse_args()
for number, line in enumerate(filter(None, map(str.strip, sys.stdin))):
    time.sleep(0.02)
    n = int(22050 * 0.05 * len(line) * float(a.length_scale))
    with wave.open(f"{a.output_dir}/{number}.wav", "wb") as f:
        f.setnchannels(1); f.setsampwidth(2); f.setframerate(22050)
        f.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(i / 9))) for i in range(n)))
"""


@dataclass(frozen=True)
class Job:
    """A command. Its outputs go to a folder that is its own; `progress` is what it has finished there and must not lose."""

    name: str
    arguments: Callable[[Path, Path], list[str]]  # from the folders of the inputs and of the outputs
    compare: Callable[[Path, Path], dict[str, bool]]  # folders of an undisturbed and of a killed run: the same bytes?
    lock: Callable[[Path], Path | None]
    progress: Callable[[Path], list[int]] = lambda _: [0]


def prepare(folder: Path, environment: dict[str, str]) -> None:
    """Write what the commands read: speech, a recording of a minute, a text, an engine that beeps, checkpoints, a bundle."""
    clips = sample(16)
    write_manifest(folder, clips)
    _recordings(folder / "recordings", clips[:5])
    texts = dict.fromkeys(clip.text for clip in sample(150, seed=2))
    (folder / "text.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    engine = folder / "engine" / "piper"
    engine.mkdir(parents=True)
    (engine / "__init__.py").touch()
    (engine / "__main__.py").write_text(ENGINE)
    (folder / "voice.onnx").write_bytes(b"voice")
    (folder / "voice.onnx.json").write_text("{}")
    student = small_teacher(small_teacher(folder / "teacher", 64).with_name("student"), 64)
    (student / "workbench.json").write_text(json.dumps({"schema": 1, "length": "true", "margin_seconds": 0.4}))
    for source, name, precision in (("student", "bundle", "fp32,int8"), ("teacher", "padded", "fp32")):
        command = _export(folder, folder / source, folder / name, precision)
        subprocess.run([sys.executable, "-m", "workbench", *command], env=environment, check=True, capture_output=True)


def _recordings(folder: Path, clips: list[Any]) -> None:
    """Each clip, and all of them one after another, which `label` cuts."""
    import numpy as np

    from workbench.audio.decode import write_flac

    folder.mkdir()
    waves = [clip.wave() for clip in clips]
    for number, wave in enumerate(waves):
        write_flac(folder / f"{number:02d}.flac", wave)
    pause = np.zeros(16_000, np.float32)
    write_flac(folder / "long.flac", np.concatenate([part for wave in waves for part in (wave, pause)]))


def _export(inputs: Path, source: Path, output: Path, precision: str) -> list[str]:
    corpus = str(inputs / "manifest.jsonl")
    return ["export", str(source), "-o", str(output), "--precision", precision, "--corpus", corpus, "--no-verify"]


def _distill(inputs: Path, folder: Path) -> list[str]:
    recipe = {**_recipe(inputs), "corpus": str(inputs / "manifest.jsonl"), "stages": STAGES, "output": str(folder / "run"),
              "ema_decay": 0.9, "augment": {"speed_factors": [0.9, 1.1], "noise_probability": 0.5}}  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return ["distill", str(path)]


def _recipe(inputs: Path) -> dict[str, Any]:
    return {"teacher": str(inputs / "teacher"), "student": {"decoder_layers": 1}, "checkpoint_minutes": 1e-9,
            "targets": {"top_k": 8, "allow_large_tail": True}}  # fmt: skip


def _distill_progress(folder: Path) -> list[int]:
    run = folder / "run"
    steps = [int(p.name.split("-")[1]) for p in (run / "checkpoints").glob("step-*")]
    ended = (run / "scores.json").is_file()
    return [_lines(folder / "cache" / "targets", "*/index-*.jsonl"), FINISHED if ended else max(steps, default=0)]


def _lines(folder: Path, pattern: str) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(pattern))


def _same_run(whole: Path, killed: Path) -> dict[str, bool]:
    import pyarrow.parquet as pq

    # rows; how they are grouped in the file may differ
    weights = [pq.read_table(folder / "run" / "weights.parquet") for folder in (whole, killed)]
    return {"weights.parquet": weights[0].equals(weights[1]),
            **same_files(whole, killed, "run/student/*", "run/metrics.jsonl")}  # fmt: skip


def same_files(whole: Path, killed: Path, *patterns: str) -> dict[str, bool]:
    """Whether files of these patterns are the same bytes, but for the folder's own name, and the same files."""
    names = {p.relative_to(f) for f in (whole, killed) for pattern in patterns for p in f.glob(pattern) if p.is_file()}
    return {
        str(name): _content(whole, whole / name) == _content(killed, killed / name) is not None
        for name in sorted(names)
    }


def _content(folder: Path, path: Path) -> bytes | None:
    return path.read_bytes().replace(str(folder).encode(), b"") if path.is_file() else None


def _labeller() -> Path:
    """Whisper base, from the cache of whoever runs this: a random model repeats itself, and `label` rejects that."""
    from workbench.models.resolve import resolve_teacher

    return resolve_teacher("whisper-base")


def _label_progress(folder: Path) -> list[int]:
    if (folder / "out.jsonl").is_file():
        return [FINISHED]
    lines = [line for p in folder.glob(".out.jsonl.*.journal") for line in p.read_text().splitlines()]
    return [len({json.loads(line)["clip"] for line in lines if line.endswith("}")})]


def _study(inputs: Path, folder: Path) -> list[str]:
    stages = {"decoder": {"trainable": "decoder", "epochs": 1, "learning_rate": 1e-3, "batch_seconds": 12}}
    arms = {name: {"stages.decoder.weighting": {"name": weighting}} for name, weighting in (("fixed_kd", "fixed"), ("adakd", "adakd"))}  # fmt: skip
    study = {"output": str(folder / "study"), "recipe": {**_recipe(inputs), "stages": stages}, "split": "validation",
             "corpora": [str(inputs / "manifest.jsonl")], "seeds": [1], "arms": arms}  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return ["study", str(path)]


def _same_study(whole: Path, killed: Path) -> dict[str, bool]:
    """Results without times, memory and host."""
    found = [
        {p.parent.relative_to(folder).as_posix(): {k: json.loads(p.read_text())[k] for k in ("validation", "steps", "inputs", "parameters")}
         for p in (folder / "study").rglob("result.json")}
        for folder in (whole, killed)
    ]  # fmt: skip
    return {"results": len(found[0]) == 2 and found[0] == found[1],
            **same_files(whole, killed, "study/**/metrics.jsonl", "study/**/teacher/*.json")}  # fmt: skip


def _copied(inputs: Path, folder: Path) -> str:
    """A bundle of its own, since a manifest is added to."""
    if not (folder / "bundle").is_dir():
        shutil.copytree(inputs / "bundle", folder / "bundle")
    return str(folder / "bundle")


def _measure(inputs: Path, folder: Path) -> list[str]:
    return ["measure", _copied(inputs, folder), "--against", str(inputs / "padded"), "-o", str(folder / "report"), "--corpus",
            str(inputs / "manifest.jsonl"), "--split", "validation", "--clips", "4", "--no-robustness", "--threads", "1"]  # fmt: skip


def _same_report(whole: Path, killed: Path) -> dict[str, bool]:
    """Transcripts and scores; times are not to be the same."""
    reports = [json.loads((folder / "report" / "report.json").read_text()) for folder in (whole, killed)]
    texts = [[c["hypotheses"] for c in report["clips"]] for report in reports]
    scores = [[{k: s[k] for k in ("name", "wer", "cer", "tokens")} for s in report["systems"]] for report in reports]
    recorded = [
        "measurement" in json.loads((folder / "bundle" / "bundle.json").read_text()) for folder in (whole, killed)
    ]
    return {"transcripts": texts[0] == texts[1], "scores": scores[0] == scores[1], "recorded": all(recorded),
            "page": (killed / "report" / "report.html").is_file()}  # fmt: skip


def _verify(inputs: Path, folder: Path) -> list[str]:
    return ["verify", _copied(inputs, folder), "--checkpoint", str(inputs / "student"), "--corpus", str(inputs / "manifest.jsonl"),
            "--clips", "3", "--client", "edge", "--threads", "1", "--json", str(folder / "found.json")]  # fmt: skip


def _same_findings(whole: Path, killed: Path) -> dict[str, bool]:
    found = [json.loads((folder / "found.json").read_text())["clients"] for folder in (whole, killed)]
    kept = [json.loads((f / "bundle" / "bundle.json").read_text())["verification"]["clients"] for f in (whole, killed)]
    return {"found": found[0] == found[1], "recorded": kept[0] == kept[1]}


JOBS = (
    Job("distill", _distill, _same_run, lambda f: f / ".run.lock", _distill_progress),
    Job("label",
        lambda i, f: ["label", str(i / "recordings"), "-o", str(f / "out.jsonl"), "--teacher", str(_labeller()), "--batch-size", "2", *LOOSE],
        lambda a, b: same_files(a, b, "out.jsonl", "out.rejected.jsonl", "out.audio/*"),
        lambda f: f / ".out.jsonl.lock", _label_progress),
    Job("synthesize",
        lambda i, f: ["synthesize", str(i / "text.txt"), "-o", str(f / "out.jsonl"), "--voice", str(i / "voice.onnx"), "--join-seconds", "20"],
        lambda a, b: same_files(a, b, "out.jsonl", "out.rejected.jsonl", "out.audio/*"),
        lambda f: f / ".out.jsonl.lock", lambda f: [len(list((f / "out.audio").glob("*.flac")))]),
    Job("study", _study, _same_study, lambda f: f / ".study.lock",
        lambda f: [len(list((f / "study").rglob("result.json")))]),
    Job("export", lambda i, f: _export(i, i / "student", f / "bundle", "fp32,int8"),
        lambda a, b: same_files(a, b, "bundle/**/*"), lambda f: f / ".bundle.lock"),
    Job("measure", _measure, _same_report, lambda f: f / "report" / ".report.json.lock"),
    Job("pack", lambda i, f: ["pack", str(i / "bundle"), "-o", str(f / "pack"), "--overwrite"],
        lambda a, b: same_files(a, b, "pack/**/*"), lambda f: f / ".pack.lock"),
    Job("verify", _verify, _same_findings, lambda _: None),
)  # fmt: skip
