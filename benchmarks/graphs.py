"""The fp32 graphs of two bundles of one checkpoint: nodes, the largest difference of their outputs, and their times in turns.

    python benchmarks/graphs.py --before BUNDLE --after BUNDLE --json FILE

Frontend and encoder at several lengths; the merged decoder a prompt and then token by token. A time is a graph's median over the
rounds; figures are the second bundle's over the first's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, finish, median

OPTIONS = {
    "before": ("", "the one bundle"),
    "after": ("", "the other"),
    "rounds": (7, "times that each is run"),
    "threads": (1, "of each"),
}
SECONDS = (0.3, 3.0, 10.0, 30.0)
TOKENS = 12  # of the decoder, after the prompt


def main() -> None:
    """Run both in turns, print the figures."""
    options = arguments(__doc__, **OPTIONS)
    from export.bundle.manifest import open_manifest
    from workbench.core.errors import UserError

    if not options.before or not options.after:
        raise UserError("--before and --after name two bundles of one checkpoint")
    manifests = {which: open_manifest(Path(getattr(options, which)), check=True) for which in ("before", "after")}
    if len({m.content["checkpoint_sha256"] for m in manifests.values()}) > 1:
        raise UserError(f"{options.after}: is of another checkpoint than {options.before}")
    sessions = {which: _sessions(manifest, options.threads) for which, manifest in manifests.items()}
    runs: list[dict[str, Any]] = []
    worst: dict[str, float] = {}
    for graph, task, run in _tasks(sessions["before"]):
        outputs = {which: run(sessions[which]) for which in sessions}  # untimed, too
        difference = max(_relative(a, b) for a, b in zip(outputs["before"], outputs["after"], strict=True))
        worst[graph] = max(worst.get(graph, 0.0), difference)
        for number in range(options.rounds):
            for which in list(sessions)[:: 1 if number % 2 else -1]:
                started = time.perf_counter()
                run(sessions[which])
                ms = 1000 * (time.perf_counter() - started)
                runs.append({"graph": graph, "task": task, "which": which, "round": number, "ms": round(ms, 3)})
    figures: dict[str, float] = {}
    for graph in worst:
        figures[f"{graph}_difference"] = worst[graph]
        figures |= {f"{graph}_nodes_{which}": _nodes(m.graph(graph, "fp32")) for which, m in manifests.items()}
    for graph, task in dict.fromkeys((run["graph"], run["task"]) for run in runs):
        both = [median(runs, "ms", graph=graph, task=task, which=which) for which in ("after", "before")]
        figures[f"{graph}_{task}_time"] = both[0] / both[1]
    finish(options.json, figures, runs, checkpoint_sha256=manifests["before"].content["checkpoint_sha256"])


def _sessions(manifest: Any, threads: int) -> dict[str, Any]:
    import onnxruntime as ort

    from export.edge.decoding.sessions import session_options

    return {
        part: ort.InferenceSession(str(manifest.graph(part, "fp32")), session_options(threads), providers=["CPUExecutionProvider"])
        for part in ("frontend", "encoder", "decoder")
    }  # fmt: skip


def _tasks(sessions: dict[str, Any]) -> list[tuple[str, str, Callable[[dict[str, Any]], list[Any]]]]:
    """Each graph's name, what it is given, and a function that runs it."""
    random = np.random.default_rng(0)
    tasks: list[Any] = []
    mels = sessions["encoder"].get_inputs()[0].shape[1]
    for seconds in SECONDS:
        waves = random.normal(0, 0.1, (1, round(16_000 * seconds))).astype(np.float32)
        features = random.normal(size=(1, mels, round(100 * seconds))).astype(np.float32)
        tasks.append(("frontend", f"{seconds:g}_s", lambda s, waves=waves: s["frontend"].run(None, {"waves": waves})))
        tasks.append(("encoder", f"{seconds:g}_s", lambda s, given=features: s["encoder"].run(None, {"input_features": given})))  # fmt: skip
    width = sessions["encoder"].get_outputs()[-1].shape[2]
    states = random.normal(size=(1, 150, width)).astype(np.float32)
    tasks.append(("decoder", f"{TOKENS}_tokens", lambda s: _decode(s["decoder"], states)))
    return tasks


def _decode(session: Any, states: Any) -> list[Any]:
    """The logits after each token."""
    past = {i.name: np.zeros((1, i.shape[1], 1, i.shape[3]), np.float32) for i in session.get_inputs() if i.name.startswith("past")}  # fmt: skip
    names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    found = []
    for number in range(TOKENS + 1):
        ids = np.array([[number + 100] if number else [1, 2, 3, 4]])
        feed = {"input_ids": ids, "encoder_hidden_states": states, "use_cache_branch": np.array([number > 0])}
        logits, *new = session.run(names, feed | past)
        past = {name: now if now.size else old for (name, old), now in zip(past.items(), new, strict=True)}
        found.append(logits)
    return found


def _relative(a: Any, b: Any) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(a - b).max() / np.abs(a).max())


def _nodes(path: Path) -> float:
    """Nodes of a graph, those of its branches included."""
    import onnx

    from export.graphs.edit import branches

    model = onnx.load(path)
    return float(sum(len(graph.node) for graph in (model.graph, *branches(model))))


if __name__ == "__main__":
    main()
