"""Measure bundles against their teacher: WER, CER, latency, memory and size, on the same clips in one run."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.bundle import export_bundle
from export.clients import has_graphs_of
from export.curves import read_curves
from export.edge.bundle import Manifest
from export.flops import encoder_flops, token_flops
from export.latency import STAGES, System, Timed, time_systems
from export.manifest import open_manifest, record, size_mb
from export.robustness import check_robustness
from workbench.audio import write_wav
from workbench.corpus import Utterance, open_corpus
from workbench.errors import UserError
from workbench.files import cache_dir, read_json, sha256_of, write_json
from workbench.host import describe_host, usable_cpus
from workbench.progress import Progress
from workbench.scoring import paired_difference, score
from workbench.teachers import fingerprint, resolve_teacher

log = logging.getLogger("workbench")
SCHEMA = 2


def measure(
    bundles: Sequence[Path],
    teacher: str,
    output: Path,
    corpus: str = "prompts-en",
    split: str = "test",
    limit: int | None = None,
    threads: int | None = None,
    repeats: int = 1,
    again: bool = False,
    robustness: bool = True,
) -> dict[str, Any]:
    """Measure every precision of some bundles, and their teacher as ONNX fp32 at 30 s in the same runtime.

    Args:
        bundles: folders of bundles; all precisions of each are measured.
        teacher: name of the teacher, as for `resolve_teacher`; or the path of a bundle of it.
        output: folder for report.json and report.html.
        corpus: the clips' corpus.
        split: its part; test by default.
        limit: at most this many clips.
        threads: of every system; all cores by default.
        repeats: passes over each clip, of which the median counts.
        again: measure anew even if report.json holds these very systems and clips.
        robustness: also let every system hear sounds without speech (`export/robustness.py`).

    Returns:
        The report's content (docs/measuring.md describes it).

    Raises:
        UserError: a bundle is damaged, or corpus or teacher cannot be had.
    """
    from export.report import write_html

    threads = threads or usable_cpus()
    utterances = open_corpus(corpus, split, limit)
    systems = _systems(bundles, teacher)
    key = _key(systems, utterances, threads, repeats, robustness)
    report_path = output / "report.json"
    if report_path.is_file() and not again:
        known = read_json(report_path, "a report")
        if known.get("key") == key:
            log.info("%s holds this measurement; add --again to repeat it", report_path)
            return dict(known)
    timed = time_on(systems, utterances, threads, repeats)
    report = _report(systems, timed, utterances, corpus, split, threads, repeats, key)
    if robustness:
        log.info("silence, noise, music and the shortest clips")
        report["robustness"] = check_robustness(systems, timed, utterances, threads)
    curves = {open_manifest(bundle).name: read_curves(bundle) for bundle in bundles}
    report["training"] = {name: found for name, found in curves.items() if found}
    write_json(report_path, report)
    write_html(report, output / "report.html")
    for bundle in bundles:
        rows = [row for row, s in zip(report["systems"], systems, strict=True) if s.bundle == bundle]
        record(
            bundle,
            measurement={k: report[k] for k in ("corpus", "host", "threads")} | {"systems": [_brief(r) for r in rows]},
        )
    return report


def _systems(bundles: Sequence[Path], teacher: str) -> list[System]:
    """The teacher and every precision of the bundles, each checked."""
    systems = [System(f"{_base(teacher)} (teacher)", "teacher", teacher_bundle(teacher), "fp32")]
    for bundle in bundles:
        manifest = open_manifest(bundle, check=True)
        if not has_graphs_of(manifest, "edge"):
            raise UserError(
                f"{bundle}: was packed for {manifest.packed_for}, measuring takes our own runtime's graphs; measure the whole bundle"
            )
        systems += [System(f"{manifest.name} {p}", "student", bundle, p) for p in manifest.precisions]
    if len({s.name for s in systems}) < len(systems):
        raise UserError("two of the bundles have the same name and precision; export them with different --name")
    return systems


def teacher_bundle(teacher: str) -> Path:
    """The teacher's own bundle: one given as a path, else an fp32 export of its checkpoint, kept in the cache."""
    if (Path(teacher) / "bundle.json").is_file():
        return Path(teacher)
    checkpoint = resolve_teacher(teacher)
    folder = cache_dir() / "bundles" / fingerprint(checkpoint)[:16]
    if not folder.exists():
        log.info("exporting the teacher, once")
    return export_bundle(checkpoint, folder, ["fp32"], name=_base(teacher), overwrite=True)


def _base(teacher: str) -> str:
    return teacher.rstrip("/").rsplit("/", 1)[-1]


def _key(
    systems: Sequence[System], utterances: Sequence[Utterance], threads: int, repeats: int, robustness: bool
) -> str:
    graphs = [
        [s.name, sorted(open_manifest(s.bundle).content["files"].get(g, "") for g in _graphs(s))] for s in systems
    ]
    clips = [[u.id, u.text, u.audio_sha256()] for u in utterances]
    return sha256_of([SCHEMA, graphs, clips, threads, repeats, robustness, describe_host()["cpu"]])


def _graphs(system: System) -> list[str]:
    return list(open_manifest(system.bundle).content["precisions"][system.precision].values())


def time_on(systems: Sequence[System], utterances: Sequence[Utterance], threads: int, repeats: int = 1) -> list[Timed]:
    """Time systems on a corpus's clips, in turns (see `time_systems`)."""
    with tempfile.TemporaryDirectory() as temporary:
        wavs = []
        for i, utterance in enumerate(utterances):
            wavs.append((Path(temporary) / f"{i}.wav", utterance.language))
            write_wav(wavs[-1][0], utterance.wave())
        with Progress("measuring", len(utterances) * len(systems) * repeats) as progress:
            return time_systems(systems, wavs, threads, repeats=repeats, progress=lambda n: progress.advance(n))


def _report(
    systems: Sequence[System], timed: Sequence[Timed], utterances: Sequence[Utterance],
    corpus: str, split: str, threads: int, repeats: int, key: str,
) -> dict[str, Any]:  # fmt: skip
    rows = [_row(system, found, utterances) for system, found in zip(systems, timed, strict=True)]
    texts, language = [u.text for u in utterances], utterances[0].language
    for row, found in zip(rows[1:], timed[1:], strict=True):
        row["wer_difference"] = paired_difference(texts, found.hypotheses, timed[0].hypotheses, language)
        row["speedup"] = round(rows[0]["latency_ms"]["p50"] / row["latency_ms"]["p50"], 2)
        ratios = [a / b for a, b in zip(_totals(timed[0]), _totals(found), strict=True)]
        row["speedup_per_clip_p50"] = round(float(np.median(ratios)), 2)
    return {
        "schema": SCHEMA,
        "key": key,
        "host": describe_host(),
        "corpus": {
            "name": corpus,
            "split": split,
            "clips": len(utterances),
            "seconds": round(sum(u.seconds for u in utterances), 1),
        },
        "threads": threads,
        "repeats": repeats,
        "systems": rows,
        "clips": [
            {
                "id": u.id,
                "seconds": u.seconds,
                "reference": u.text,
                "hypotheses": {s.name: t.hypotheses[i] for s, t in zip(systems, timed, strict=True)},
                "stages_ms": {s.name: t.stages_ms[i] for s, t in zip(systems, timed, strict=True)},
            }
            for i, u in enumerate(utterances)
        ],
    }


def _row(system: System, found: Timed, utterances: Sequence[Utterance]) -> dict[str, Any]:
    manifest = open_manifest(system.bundle)
    texts, language = [u.text for u in utterances], utterances[0].language
    scores = score(texts, found.hypotheses, language)
    raw = score(texts, found.hypotheses, language, normalized=False)
    totals = _totals(found)
    loops = found.loops(dict(enumerate(texts)), language)
    config = read_json(system.bundle / "config.json", "a bundle's configuration")
    return {
        "name": system.name,
        "kind": system.kind,
        "runtime": f"onnxruntime {describe_host()['versions'].get('onnxruntime', '?')} (edge)",
        "precision": system.precision,
        "length": manifest.content["length"],
        "parameters": manifest.content["parameters"],
        "size_mb": round(size_mb(manifest, system.precision), 1),
        "graphs_sha256": {g: manifest.content["files"][g] for g in _graphs(system)},
        **scores.as_dict(),
        "loops": loops,
        "wer_raw": round(raw.wer, 3),
        "cer_raw": round(raw.cer, 3),
        "stopped_by_cap": found.stopped_by_cap(range(len(texts))),
        "looping_rate": round(100.0 * loops / len(texts), 2),
        "latency_ms": {f"p{q}": round(float(np.percentile(totals, q)), 1) for q in (50, 95)},
        "stages_ms": {stage: round(float(np.median([s[stage] for s in found.stages_ms])), 2) for stage in STAGES},
        "tokens": sum(found.tokens),
        "gflop": round(
            float(
                np.mean([_flops(config, manifest, u.seconds, n) for u, n in zip(utterances, found.tokens, strict=True)])
            )
            / 1e9,
            3,
        ),
        "rtfx": round(1000 * sum(u.seconds for u in utterances) / sum(totals), 2),
        "load_ms": round(found.load_ms, 1),
        "peak_rss_mb": round(found.peak_rss_mb, 1),
    }


def _flops(config: dict[str, Any], manifest: Manifest, seconds: float, tokens: int) -> float:
    """Operations for a clip: its encoder, the prompt and every token."""
    content = manifest.content
    heard = seconds + content["margin_seconds"] if content["length"] == "true" else content["window_seconds"]
    positions = min(int(50 * heard + 0.5), int(config["max_source_positions"]))
    steps = tokens + len(next(iter(content["tokens"]["prompts"].values())))
    return encoder_flops(config, positions) + sum(token_flops(config, positions, i) for i in range(steps))


def _totals(found: Timed) -> list[float]:
    return [sum(stages.values()) for stages in found.stages_ms]


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    names = (
        "name",
        "precision",
        "wer",
        "wer_ci",
        "cer",
        "latency_ms",
        "rtfx",
        "size_mb",
        "peak_rss_mb",
        "speedup",
        "wer_difference",
    )
    return {name: row[name] for name in names if name in row}
