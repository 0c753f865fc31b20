"""A bundle's int8 against the int8 that Optimum's own quantizer makes of its fp32 graphs: size, WER, time.

Both run in the same runtime, `ORTModelForSpeechSeq2Seq` in Optimum's environment, each in a process of its own; clip by clip in
turns, whose order is reversed from clip to clip and round to round. The fp32 graphs, from which both are quantized, are timed as well.
Optimum quantizes as its guide does (`AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)`, `avx2` on CPUs without VNNI). Times are whole
calls: features, encoder, decoding, text.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, finish, median

OPTIONS = {
    "bundle": ("runs/quickstart/bundle", "the bundle; with fp32 and int8"),
    "clips": (10_000, "test clips, at most"),
    "rounds": (5, "times that every clip is transcribed"),
    "threads": (2, "threads of each system"),
    "operators": ("", "kinds of nodes that Optimum quantizes, joined by commas; its own choice by default"),
}
OURS, THEIRS, FP32 = "bundle int8", "Optimum int8", "bundle fp32"
HERE = Path(__file__).parent


def main() -> None:
    """Quantize, transcribe in turns, print the figures."""
    options = arguments(__doc__, **OPTIONS)
    from export.bundle.manifest import open_manifest
    from export.edge.bundle.manifest import read_manifest
    from export.verification.clients.optimum import OptimumClient
    from workbench.core.errors import UserError
    from workbench.corpus import scored_clips
    from workbench.evaluation.scoring import score_utterances

    manifest = open_manifest(Path(options.bundle), check=True)
    if lacking := {"fp32", "int8"} - set(manifest.precisions):
        raise UserError(f"{options.bundle}: has no {lacking.pop()}; export it with --precision fp32,int8")
    utterances = scored_clips("prompts-en", "test", options.clips)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(options.bundle).resolve()
        started = time.perf_counter()
        other = _through_optimum(bundle, Path(temporary), options.operators)
        print(f"Optimum quantized in {time.perf_counter() - started:.0f} s")
        systems = {OURS: (bundle, "int8"), THEIRS: (other, "int8"), FP32: (bundle, "fp32")}
        sizes = {
            name: sum(read_manifest(place).graph(part, precision).stat().st_size for part in ("encoder", "decoder")) / 1e6
            for name, (place, precision) in systems.items()
        }  # fmt: skip
        clients = {name: OptimumClient(*which, options.threads) for name, which in systems.items()}
        runs = [run for number in range(-1, options.rounds) for run in _round(clients, utterances, number)]
    runs = [run for run in runs if run["round"] >= 0]  # the first warms up
    scores = {
        name: score_utterances(utterances, [r["text"] for r in runs if r["system"] == name and r["round"] == 0]).wer
        for name in systems
    }
    medians = {name: median(runs, "ms", system=name) for name in systems}
    for name in systems:
        print(f"{name}: {sizes[name]:.1f} MB, WER {scores[name]:.2f} %, median {medians[name]:.1f} ms")
    figures = {
        "size_of_optimums": sizes[THEIRS] / sizes[OURS],
        "wer_points_of_optimums_above_ours": scores[THEIRS] - scores[OURS],
        "time_of_optimums": statistics.median(_ratios(runs)),
    }
    for key, values in (("mb", sizes), ("wer", scores), ("median_ms", medians)):
        figures |= {f"{key}_{name.replace(' ', '_').lower()}": value for name, value in values.items()}
    more = {"checkpoint_sha256": manifest.content["checkpoint_sha256"], "client": clients[OURS].version}
    asked = {"clips": len(utterances), "threads": options.threads, "operators": options.operators or "Optimum's"}
    finish(options.json, figures, runs, **more, **asked)


def _through_optimum(bundle: Path, folder: Path, operators: str) -> Path:
    """A bundle like the given one whose int8 graphs are Optimum's."""
    from export.bundle.view import BundleView
    from export.edge.bundle.manifest import read_manifest
    from export.graphs.names import GRAPH_FILES
    from export.optimum.environment import environment
    from workbench.core.machine.host import has_int8_dot_product

    manifest, there = read_manifest(bundle), environment()
    view = BundleView(manifest, "fp32", graphs=".")
    names = [GRAPH_FILES[part] for part in ("encoder", "decoder")]
    made = folder / "quantized"
    cpu = "avx512_vnni" if has_int8_dot_product() else "avx2"  # as ours: 7 bits where 8 would saturate
    asked = [str(view.folder), str(made), *names, "--cpu", cpu, "--operators", operators]
    command = there.command(HERE / "optimum_int8.py", *asked)
    subprocess.run(command, check=True, env=there.variables(), stdout=subprocess.DEVNULL)
    # copied, since a bundle may hold no links
    other = shutil.copytree(bundle, folder / "bundle", ignore=shutil.ignore_patterns("step_*", "sherpa_*"))
    for part in ("encoder", "decoder"):
        shutil.move(made / GRAPH_FILES[part], other / manifest.graph(part, "int8").relative_to(bundle))
    return other


def _round(clients: dict[str, Any], utterances: list[Any], number: int) -> list[dict[str, Any]]:
    """Every clip by every system, once."""
    runs = []
    for i, utterance in enumerate(utterances):
        wave = utterance.wave()
        for name in list(clients)[:: 1 if (i + number) % 2 else -1]:
            started = time.perf_counter()
            said = clients[name].transcribe(wave, utterance.language)
            ms = 1000 * (time.perf_counter() - started)
            runs.append({"round": number, "system": name, "clip": utterance.id, "ms": ms, "text": said.text, "tokens": len(said.tokens or ())})  # fmt: skip
    return runs


def _ratios(runs: list[dict[str, Any]]) -> list[float]:
    """Optimum's time over ours of each clip, medians over rounds."""
    clips = dict.fromkeys(run["clip"] for run in runs)
    return [median(runs, "ms", system=THEIRS, clip=clip) / median(runs, "ms", system=OURS, clip=clip) for clip in clips]


if __name__ == "__main__":
    main()
