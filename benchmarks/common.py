"""What the benchmarks share: a sample of the built-in speech, a small random teacher, and the JSON they write."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import install_one_line_excepthook, output_file

ROOT = Path(__file__).resolve().parent.parent


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type of argparse: texts that say something, and numbers above 0."""

    def read(text: str) -> Any:
        value = kind(text.strip())
        if value == "" or (isinstance(value, (int, float)) and not 0 < value < float("inf")):
            raise ValueError(text)
        return value

    read.__name__ = f"positive {kind.__name__}" if kind in (int, float) else "text"
    return read


def arguments(doc: str | None, **extra: tuple[Any, str]) -> argparse.Namespace:
    """`--json FILE` and a benchmark's own options, given as name=(default, help); numbers are positive."""
    install_one_line_excepthook()
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--json", type=output_file, help="where to write figures, host and raw runs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    for name, (default, text) in extra.items():
        # argparse would convert a default that is a text, and refuse the empty one, which stands for "not given"
        parser.add_argument(f"--{name}", type=positive(type(default)), help=f"{text} ({default})" if default else text)
    given = parser.parse_args()
    for name, (default, _) in extra.items():
        if getattr(given, name) is None:
            setattr(given, name, default)
    return given


def finish(path: Path | None, figures: dict[str, float], runs: list[dict[str, Any]], **more: Any) -> None:
    """Print the figures and write the file, with `more` fields if there are any."""
    from workbench.core.files import write_json
    from workbench.core.machine.host import describe_host

    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    if path is not None:
        command = " ".join(
            [
                "python",
                *(
                    ",".join(Path(part).name if part.startswith("/") else part for part in a.split(","))
                    for a in sys.argv
                ),
            ]
        )
        write_json(path, {"figures": figures, "host": describe_host(), "command": command, **more, "runs": runs})


def median(runs: list[dict[str, Any]], key: str, **wanted: Any) -> float:
    """Median of a field over the runs with these values."""
    return statistics.median(r[key] for r in runs if all(r.get(k) == v for k, v in wanted.items()))


def sample(clips: int, seed: int = 1) -> list[Any]:
    """Utterances drawn at random from the built-in training split."""
    from workbench.corpus import open_corpus

    found = open_corpus("prompts-en", "train")
    chosen = sorted(np.random.default_rng(seed).permutation(len(found))[:clips].tolist())
    return [found[i] for i in chosen]


def write_manifest(folder: Path, clips: list[Any], validation: int = 4) -> Path:
    """A manifest of these training clips and a few for validation."""
    from workbench.corpus import open_corpus

    held = open_corpus("prompts-en", "validation", validation) if validation else []
    rows = [(u, "train") for u in clips] + [(u, "validation") for u in held]
    path = folder / "manifest.jsonl"
    path.write_text("".join(
        json.dumps({"id": u.id, "audio": str(Path(u.audio).resolve()), "text": u.text, "duration": u.seconds, "split": split}) + "\n"
        for u, split in rows
    ))  # fmt: skip
    return path


def small_teacher(folder: Path, width: int = 128) -> Path:
    """A random Whisper of a few layers with the built-in teacher's tokenizer: engine work without a model's weight."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    from workbench.models.resolve import resolve_teacher
    from workbench.models.whisper.loading.checkpoint import check_checkpoint

    torch.manual_seed(0)
    source = resolve_teacher("whisper-base")
    base = check_checkpoint(source).to_dict()
    sizes = {"d_model": width, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width}  # fmt: skip
    model = WhisperForConditionalGeneration(WhisperConfig.from_dict({**base, **sizes}))
    model.generation_config = GenerationConfig.from_pretrained(source)
    model.save_pretrained(folder)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt") and not (folder / path.name).exists() and path.name != "source.json":
            shutil.copyfile(path, folder / path.name)
    return folder


def workbench(cache: Path, *args: str, **environment: str) -> list[str]:
    """Command that runs the workbench of this checkout; the environment is changed to use `cache`."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.update({"WORKBENCH_CACHE": str(cache), "PYTHONPATH": path, **environment})
    return [sys.executable, "-m", "workbench", *args]


class Worker:
    """This script again in its own process, which reads one command per line.

    Args:
        script: the script.
        name: the worker to be, given to the process as `--worker`.
        packages: a folder whose packages come before those that are installed.
        root: the checkout that the script belongs to.
        python: the interpreter that runs it.
        options: further options of the script.
    """

    def __init__(
        self,
        script: str | Path,
        name: str,
        packages: Path | None = None,
        root: Path = ROOT,
        python: str = sys.executable,
        **options: Any,
    ) -> None:
        flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        path = [*([packages] if packages else []), root, root / "benchmarks"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
        self.process = subprocess.Popen(
            [python, str(script), "--worker", name, *flags],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.ready = self._read()

    def ask(self, **what: Any) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"a worker of {sys.argv[0]} ended early")


def serve(answer: Any, ready: dict[str, Any]) -> None:
    """A worker's side: say what is ready, then answer requests until the input ends."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def timed(work: Any) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
