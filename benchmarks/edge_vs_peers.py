"""A bundle against faster-whisper, onnx-asr, Optimum, whisper.cpp and Moonshine: latency, WER, size and memory on the same clips, in turns.

Every clip goes to each system in turn, in an order drawn anew for each clip, each in a process of its own with the same threads; the time is
from samples to text. A turn begins with the clip before, whose time is kept as `cold_ms`: a system that has waited for all the others is slower than
one that has just run, and some lose more by it. `cpu_ms` is what the process computed in its time. Ratios are of median latencies, against the
quicker of a peer's greedy and beam runs.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Worker, arguments, finish, serve

OPTIONS = {
    "bundle": ("runs/quickstart/bundle", "the bundle"),
    "precision": ("int8", "its precision, or several with commas between; the figures are the first's"),
    "corpus": ("prompts-en", "clips: a corpus or a manifest, in English"),
    "split": ("test", "its part"),
    "clips": (100_000, "at most this many clips"),
    "threads": (2, "of each system"),
    "repeats": (1, "passes over each clip, of which the median counts"),
    "only": ("", "systems whose name contains this, beside ours and the teacher"),
}
TEACHER = "teacher, fp32, 30 s"
WARM_UP = 2  # clips that each system transcribes first, untimed
PAUSE = 0.25  # s before each turn: threads of OpenMP spin on for a fifth of a second, on the next one's cores


def main() -> None:
    """Run every system on every clip and print one row each."""
    options = arguments(__doc__, **OPTIONS)
    if options.worker:
        _work(options)
        return
    from peers import PEERS, versions

    from export.measurement.tables import interval
    from workbench.corpus import scored_clips

    peers = {name: peer for name, peer in PEERS.items() if options.only in name}
    compared = versions(peers.values())
    ours = {f"ours, {precision}": precision for precision in options.precision.split(",")}
    utterances = scored_clips(options.corpus, options.split, options.clips)
    systems, runs = _measure(options, ours, peers, utterances)
    print(
        "| system | WER % (95 %) | p50 ms | p95 ms | cold p50 ms | RTFx | MB | peak RSS MB |\n|---|---|---|---|---|---|---|---|"
    )
    for s in systems:
        bounds = interval(s["wer_ci"])
        times = f"{s['p50_ms']:.0f} | {s['p95_ms']:.0f} | {s['cold_p50_ms']:.0f} | {s['rtfx']:.1f}"
        print(f"| {s['name']} | {s['wer']:.2f} ({bounds}) | {times} | {s['size_mb']:.0f} | {s['peak_rss_mb']:.0f} |")
    clips = [
        {"id": u.id, "seconds": u.seconds, "reference": u.text, **{name: found[i] for name, found in runs.items()}}
        for i, u in enumerate(utterances)
    ]
    more = {"systems": systems, "versions": compared, "corpus": f"{Path(options.corpus).name} {options.split}"}
    measured = _figures(systems, next(iter(ours)))
    figures = {name: value for name, value in measured.items() if not np.isnan(value)}  # of systems that took part
    finish(options.json, figures, clips, **more)


def _measure(
    options: Any, ours: dict[str, str], peers: dict[str, Any], utterances: list[Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for every system, and what each made of every clip."""
    from peers import prepare, size_mb

    from export.assembly.teacher import teacher_bundle
    from export.bundle.manifest import open_manifest
    from export.bundle.manifest import size_mb as bundle_mb
    from workbench.audio.decode import write_wav
    from workbench.core.hashing import cache_dir
    from workbench.evaluation.scoring import paired_difference, score_utterances

    sources = prepare(cache_dir() / "peers", {peer.source for peer in peers.values()})
    edges = {name: (Path(options.bundle), precision) for name, precision in ours.items()}
    edges[TEACHER] = (teacher_bundle("whisper-base"), "fp32")
    reads = edges | {name: (sources[peer.source], "-") for name, peer in peers.items()}
    with tempfile.TemporaryDirectory() as temporary:
        wavs = [Path(temporary) / f"{i}.wav" for i in range(len(utterances))]
        for wav, utterance in zip(wavs, utterances, strict=True):
            write_wav(wav, utterance.wave())
        workers = {
            name: Worker(
                __file__,
                name,
                peers[name].packages() if name in peers else None,
                threads=options.threads,
                bundle=str(folder),
                precision=precision,
            )
            for name, (folder, precision) in reads.items()
        }
        runs = _take_turns(workers, wavs, options.repeats)
        rss = {name: worker.ask(wav="")["peak_rss_mb"] for name, worker in workers.items()}
        for worker in workers.values():
            worker.close()
    texts, languages = [u.text for u in utterances], [u.language for u in utterances]
    seconds = sum(u.seconds for u in utterances)
    systems = []
    for name, (folder, precision) in reads.items():
        times, said = (
            [r["ms"] for r in runs[name]],
            score_utterances(utterances, [r["text"] for r in runs[name]]).as_dict(),
        )
        systems.append({
            "name": name, **{k: said[k] for k in ("wer", "wer_ci", "cer")},
            "p50_ms": round(float(np.median(times)), 2), "p95_ms": round(float(np.percentile(times, 95)), 2),
            "cold_p50_ms": round(float(np.median([r["cold_ms"] for r in runs[name]])), 2),
            "cpu_p50_ms": round(float(np.median([r["cpu_ms"] for r in runs[name]])), 2),
            "rtfx": round(1000 * seconds / sum(times), 2), "load_ms": round(workers[name].ready["load_ms"], 1),
            "size_mb": round(bundle_mb(open_manifest(folder), precision) if name in edges else size_mb(folder), 1),
            "peak_rss_mb": round(rss[name], 1),
        })  # fmt: skip
        if name in ours:
            theirs = [r["text"] for r in runs[TEACHER]]
            systems[-1]["vs_teacher"] = paired_difference(texts, [r["text"] for r in runs[name]], theirs, languages)
    return systems, runs


def _take_turns(workers: dict[str, Worker], wavs: list[Path], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Every clip to each system in turn; of a clip's passes the one of median time is kept."""
    for wav in wavs[:WARM_UP]:
        for worker in workers.values():
            worker.ask(wav=str(wav))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    draw, names = np.random.default_rng(0), list(workers)
    for before, wav in zip([wavs[-1], *wavs[:-1]], wavs, strict=True):
        passes = []
        for _ in range(repeats):
            turns = [names[i] for i in draw.permutation(len(names))]
            passes.append({name: _asked(workers[name], before, wav) for name in turns})
        for name, kept in runs.items():
            kept.append(sorted((p[name] for p in passes), key=lambda r: float(r["ms"]))[repeats // 2])
    for kept in runs.values():  # each came with the cold time of the clip before
        cold = [run["cold_ms"] for run in kept]
        for run, ms in zip(kept, [*cold[1:], cold[0]], strict=True):
            run["cold_ms"] = ms
    return runs


def _asked(worker: Worker, before: Path, wav: Path) -> dict[str, Any]:
    """A turn: the clip before, then the clip; its answer, with the time of the clip before as `cold_ms`."""
    time.sleep(PAUSE)
    cold = worker.ask(wav=str(before))["ms"]
    return worker.ask(wav=str(wav)) | {"cold_ms": cold}


def _figures(systems: list[dict[str, Any]], ours: str) -> dict[str, float]:
    by_name = {s["name"]: s for s in systems}
    us, teacher = by_name[ours], by_name[TEACHER]
    peers = [s for s in systems if not s["name"].startswith("ours") and s is not teacher]

    def ratio(part: str) -> float:
        return min((s["p50_ms"] for s in peers if part in s["name"]), default=float("nan")) / us["p50_ms"]

    return {
        "speedup_vs_faster_whisper_base": round(ratio("faster-whisper base"), 2),
        "speedup_vs_faster_whisper_tiny": round(ratio("faster-whisper tiny"), 2),
        "speedup_vs_moonshine_tiny": round(ratio("Moonshine tiny"), 2),
        "speedup_vs_teacher": round(teacher["p50_ms"] / us["p50_ms"], 2),
        "wer": us["wer"],
        "wer_best_peer": min((s["wer"] for s in peers), default=float("nan")),
        "wer_teacher": teacher["wer"],
        "size_mb": us["size_mb"],
        "peak_rss_mb": us["peak_rss_mb"],
    }


def _work(options: Any) -> None:
    """A system's process; ours imports nothing of the workbench but the runtime that travels in the bundle."""
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    from export.edge import Recognizer, read_wav
    from workbench.core.machine.memory import peak_resident_mb

    started = time.perf_counter()
    if options.precision == "-":
        from peers import PEERS

        transcribe: Any = PEERS[options.worker].open(Path(options.bundle), options.threads)
    else:
        recognizer = Recognizer(options.bundle, options.precision, options.threads, frugal=True)  # as `python -m edge`
        transcribe = lambda wave: recognizer.transcribe(wave).text  # noqa: E731
    ready = {"load_ms": 1000 * (time.perf_counter() - started)}

    def answer(wav: str) -> dict[str, Any]:
        if not wav:
            return {"peak_rss_mb": peak_resident_mb()}
        wave = read_wav(wav)
        begun, computed = time.perf_counter(), time.process_time()
        text = transcribe(wave)
        ms, cpu_ms = 1000 * (time.perf_counter() - begun), 1000 * (time.process_time() - computed)
        return {"ms": round(ms, 3), "cpu_ms": round(cpu_ms, 3), "text": text.strip()}

    serve(answer, ready)


if __name__ == "__main__":
    main()
