"""This checkout against another one: seconds of training epochs, and of every test clip in a bundle, in turns.

    git worktree add ../before COMMIT
    python benchmarks/against_checkout.py --other ../before --bundle BUNDLE --python ../before/.venv/bin/python --json FILE

Each checkout works in a process of its own, with the interpreter and packages that belong to it; A B B A, and figures are medians of this
one's over the other's. Training is `distill_throughput.py`'s own loop without the reference recipe, transcription is `edge_vs_peers.py`'s.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, Worker, arguments, finish, median

OPTIONS = {
    "other": ("", "folder of the other checkout"),
    "python": ("", "interpreter of the other checkout; this one by default"),
    "bundle": ("", "a bundle to transcribe with, which both checkouts read"),
    "precision": ("int8", "its precision"),
    "clips": (64, "clips that are trained on"),
    "turns": (8, "epochs of each"),
    "tasks": (
        "trained,frozen,transcription",
        "what is timed: training with the encoder trained or frozen, transcription",
    ),
    "tests": (10_000, "test clips that are transcribed, at most"),
    "threads": (2, "of a transcription"),
}
THIS, OTHER = "this", "other"


def main() -> None:
    """Let both work in turns, print the figures."""
    options = arguments(__doc__, **OPTIONS)
    from workbench.core.errors import UserError

    if not options.other:
        raise UserError("--other names the folder of another checkout")
    if "transcription" in options.tasks and not options.bundle:
        raise UserError("--bundle names a bundle to transcribe with")
    if unknown := set(options.tasks.split(",")) - {"trained", "frozen", "transcription"}:
        raise UserError(f"--tasks names {unknown.pop()!r}; expected trained, frozen or transcription")
    places = {THIS: (ROOT, sys.executable), OTHER: (Path(options.other).resolve(), options.python or sys.executable)}
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for task in options.tasks.split(","):
            if task == "transcription":
                runs += _transcription(places, options, Path(folder))
            else:
                runs += _training(places, task, options, Path(folder))
    figures = {
        f"{task}_time": median(runs, "seconds", task=task, which=THIS) / median(runs, "seconds", task=task, which=OTHER)
        for task in dict.fromkeys(run["task"] for run in runs)
    }
    finish(options.json, figures, runs)


def _training(places: dict[str, Any], case: str, options: Any, folder: Path) -> list[dict[str, Any]]:
    """Epochs of the engine with the encoder trained or frozen."""
    workers = {}
    for which, (root, python) in places.items():
        cache = folder / which
        cache.mkdir(exist_ok=True)
        script = root / "benchmarks" / "distill_throughput.py"
        workers[which] = Worker(script, f"ours:{case}", None, root, python, clips=options.clips, folder=cache)
    runs = []
    for turn in range(options.turns):
        for which in _order(turn):
            seconds = workers[which].ask(what="epoch")["seconds"]
            runs.append({"task": f"epoch_{case}", "which": which, "turn": turn, "seconds": seconds})
            print(json.dumps(runs[-1]), flush=True)
    for worker in workers.values():
        worker.close()
    return runs


def _transcription(places: dict[str, Any], options: Any, folder: Path) -> list[dict[str, Any]]:
    """Every test clip, from samples to text."""
    from workbench.audio.decode import write_wav
    from workbench.corpus import scored_clips

    workers = {
        which: Worker(
            root / "benchmarks" / "edge_vs_peers.py", "ours", None, root, python,
            bundle=Path(options.bundle).resolve(), precision=options.precision, threads=options.threads,
        )
        for which, (root, python) in places.items()
    }  # fmt: skip
    runs = []
    for turn, utterance in enumerate(scored_clips("prompts-en", "test", options.tests)):
        wav = folder / "clip.wav"
        write_wav(wav, utterance.wave())
        for which in _order(turn):
            said = workers[which].ask(wav=str(wav))
            row = {"task": "transcription", "which": which, "clip": utterance.id, "text": said["text"]}
            runs.append({**row, "seconds": said["ms"] / 1000})
    for worker in workers.values():
        worker.close()
    return runs


def _order(turn: int) -> list[str]:
    return [THIS, OTHER] if turn % 2 else [OTHER, THIS]


if __name__ == "__main__":
    main()
