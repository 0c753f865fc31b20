"""What speech made from text, joined clips and other languages bring to a thin decoder on real speech.

    python benchmarks/speech_from_text.py --student runs/quickstart/student --folder runs/speech --json FILE

Every arm: the same student, of whose decoder two layers are kept, its encoder frozen; the same number of steps of the same
size; AdaKD; the last step's student, so that nothing is chosen on the validation split. Real training speech is in all of
them. The synthetic text is of the corpus's domain and holds no sentence of validation or test. Each part can be killed and
goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from common import ROOT, arguments, finish, workbench

LINES_AN_HOUR = 1200  # of the domain's text, by the voice at these speeds
SPEEDS = (0.9, 1.0, 1.1, 1.2)
JOIN_SECONDS = 12.0
DECODER = {"trainable": "decoder", "learning_rate": 3e-4, "batch_seconds": 28, "micro_batches": 1, "epochs": 1000,
           "weighting": {"name": "adakd", "k0": 2.0, "k1": -1.0, "difficulty_scale": "std"}}  # fmt: skip


def main() -> None:
    """Make the speech, train the arms, transcribe."""
    args = arguments(
        __doc__,
        student=("runs/quickstart/student", "whose encoder is kept, and two of its decoder layers"),
        folder=("runs/speech", "where everything goes"),
        hours=("0.5,1,2,4", "synthetic speech of the arms, besides the one without"),
        languages=("", "manifests of other languages, one more arm"),
        steps=(900, "optimizer steps of an arm"),
        seed=(1, "of the arms"),
    )
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    hours = sorted(float(h) for h in args.hours.split(","))
    arms: dict[str, dict[str, Any]] = {"0h": {}, "joined": {"augment": {"concatenate_seconds": JOIN_SECONDS}}}
    for wanted in hours:
        arms[f"{wanted:g}h"] = {"more_corpora": [str(speech(folder, wanted, max(hours)))]}
    if args.languages:
        arms["languages"] = {"more_corpora": args.languages.split(",")}
    runs: list[dict[str, Any]] = []
    for name, changes in arms.items():
        output = folder / f"{name}-{args.seed}"
        recipe = {"output": str(output), "student": {"decoder_layers": 2, "init_from": args.student}, "seed": args.seed,
                  "stages": {"decoder": {**DECODER, "max_steps": args.steps}}, "validate_every": 10_000, **changes}  # fmt: skip
        path = folder / f"{output.name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        command("distill", str(path))
        scores = json.loads((output / "scores.json").read_text())
        for split in ("validation", "test"):
            first = next((r["hypotheses"] for r in runs if r["split"] == split), None)
            runs.append({"arm": name, "split": split, "clips_trained": scores["corpus"]["clips"],
                         "hours_trained": scores["corpus"]["seconds"] / 3600, "seconds": scores["seconds"],
                         **transcribed(output / "student", split, first)})  # fmt: skip
            print({k: v for k, v in runs[-1].items() if k not in ("ids", "hypotheses")}, flush=True)
        figures = {
            f"{what}_{r['split']}_{r['arm']}": r[key]
            for what, key in (("wer", "wer"), ("right", "right_percent"))
            for r in runs
        }
        finish(args.json, figures, runs)  # after every arm: each takes minutes


def speech(folder: Path, hours: float, most: float) -> Path:
    """Manifest of so many hours, the first ones of all that is said."""
    said = folder / "said.jsonl"
    if not said.is_file():
        text = folder / "domain.txt"
        lines = str(round(LINES_AN_HOUR * most))
        script = [str(ROOT / "scripts" / "domain_text.py"), "--lines", lines, "--output", str(text)]
        subprocess.run([sys.executable, *script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        speeds = [part for speed in SPEEDS for part in ("--speed", str(speed))]
        command("synthesize", str(text), "-o", str(said), "--exclude-corpus", "prompts-en", "--join-seconds", f"{JOIN_SECONDS}", *speeds)  # fmt: skip
    rows, seconds = [], 0.0
    for line in said.read_text().splitlines():
        if seconds >= 3600 * hours:
            break
        rows.append(line + "\n")
        seconds += json.loads(line)["duration"]
    if seconds < 3600 * hours:
        raise SystemExit(f"{said}: holds {seconds / 3600:.2f} h, {hours:g} h are wanted; delete it")
    path = folder / f"said-{hours:g}h.jsonl"
    path.write_text("".join(rows))
    return path


def command(*args: str) -> None:
    """Run the workbench of this checkout."""
    from workbench.core.hashing import cache_dir

    subprocess.run(workbench(cache_dir(), *args), check=True)


def transcribed(student: Path, split: str, baseline: list[str] | None) -> dict[str, Any]:
    """Transcripts of a real split at true length, their scores, and how sure the difference to a baseline's is."""
    from workbench.config.sections import TrailingSilenceRecipe
    from workbench.corpus import scored_clips
    from workbench.evaluation.scoring import normalize, paired_difference, score
    from workbench.evaluation.transcribe import validate
    from workbench.models import open_family

    family = open_family(student)
    utterances = scored_clips("prompts-en", split)
    found = validate(family.load(), family, utterances, TrailingSilenceRecipe().inference)
    scored = score(found.references, found.hypotheses, found.languages)
    against = paired_difference(found.references, found.hypotheses, baseline, found.languages) if baseline else None
    # a transcript that loops can have more errors than ten others together, so the share of faultless ones stands beside it
    right = sum(normalize(r) == normalize(h) for r, h in zip(found.references, found.hypotheses, strict=True))
    return {"right_percent": 100 * right / len(utterances), "wer": scored.wer, "wer_95": scored.wer_ci, "cer": scored.cer, "loops": scored.loops, "against_first": against,
            "clips": len(utterances), "ids": [u.id for u in utterances], "hypotheses": found.hypotheses}  # fmt: skip


if __name__ == "__main__":
    main()
