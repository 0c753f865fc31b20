"""A measured system's row of a report: scores, latency, operations, memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from export.bundle.manifest import open_manifest, size_mb
from export.edge.bundle.content import Measured
from export.edge.bundle.manifest import Manifest
from export.measurement.content import LanguageScores, Scores, Section, SystemRow
from export.measurement.flops import CtcSizes, Sizes, ctc_flops, encoder_flops, sizes_of, token_flops
from export.measurement.latency import STAGES, BenchmarkResult, System
from workbench.core.machine.host import describe_host
from workbench.corpus import Utterance
from workbench.evaluation.scoring import score_utterances


def system_row(system: System, found: BenchmarkResult, utterances: Sequence[Utterance]) -> SystemRow:
    manifest = open_manifest(system.bundle)
    scores = cast("Scores", score_utterances(utterances, found.hypotheses).as_dict())
    raw = score_utterances(utterances, found.hypotheses, normalized=False)
    totals = found.total_ms
    loops = found.loops({i: (u.text, u.language) for i, u in enumerate(utterances)})
    config = sizes_of(manifest)
    return {
        "name": system.name,
        "kind": system.kind,
        "runtime": f"onnxruntime {describe_host()['versions'].get('onnxruntime', '?')} (edge)",
        "precision": system.precision,
        "length": manifest.content["length"],
        "parameters": manifest.content["parameters"],
        "size_mb": round(size_mb(manifest, system.precision), 1),
        "graphs_sha256": {g: manifest.content["files"][g] for g in graphs_of(system)},
        "wer": scores["wer"],
        "wer_ci": scores["wer_ci"],
        "wer_folded": scores["wer_folded"],
        "cer": scores["cer"],
        "cer_ci": scores["cer_ci"],
        "substitutions": scores["substitutions"],
        "deletions": scores["deletions"],
        "insertions": scores["insertions"],
        "loops": loops,
        "words": scores["words"],
        "headline": scores["headline"],
        "by_language": scores_by_language(utterances, found.hypotheses),
        "wer_raw": round(raw.wer, 3),
        "cer_raw": round(raw.cer, 3),
        "stopped_by_cap": found.stopped_by_cap(range(len(utterances))),
        "looping_rate": round(100.0 * loops / len(utterances), 2),
        "latency_ms": {
            "p50": round(float(np.percentile(totals, 50)), 1),
            "p95": round(float(np.percentile(totals, 95)), 1),
        },
        "stages_ms": {stage: round(float(np.median([s[stage] for s in found.stages_ms])), 2) for stage in STAGES},
        "tokens": sum(found.tokens),
        "gflop": round(
            float(
                np.mean(
                    [clip_flops(config, manifest, u.seconds, n) for u, n in zip(utterances, found.tokens, strict=True)]
                )
            )
            / 1e9,
            3,
        ),
        "rtfx": round(1000 * sum(u.seconds for u in utterances) / sum(totals), 2),
        "load_ms": round(found.load_ms, 1),
        "peak_rss_mb": round(found.peak_rss_mb, 1),
    }


def clip_flops(config: Sizes | CtcSizes, manifest: Manifest, seconds: float, tokens: int) -> float:
    """Operations for a clip: encoder, prompt and every token; of a model with a CTC head, encoder and head."""
    content = manifest.content
    if manifest.has_ctc_head:
        heard = min(seconds + content["margin_seconds"], content["window_seconds"])
        return ctc_flops(cast("CtcSizes", config), round(heard * content.get("sample_rate", 16_000)))
    config = cast("Sizes", config)
    heard = seconds + content["margin_seconds"] if content["length"] == "true" else content["window_seconds"]
    positions = min(int(50 * heard + 0.5), int(config["max_source_positions"]))
    steps = tokens + len(next(iter(content["tokens"]["prompts"].values())))
    return encoder_flops(config, positions) + sum(token_flops(config, positions, i) for i in range(steps))


def scores_by_language(utterances: Sequence[Utterance], hypotheses: Sequence[str]) -> dict[str, LanguageScores]:
    """Scores per language, if there is more than one."""
    languages = sorted({u.language for u in utterances})
    if len(languages) == 1:
        return {}
    out: dict[str, LanguageScores] = {}
    for language in languages:
        of_it = [i for i, u in enumerate(utterances) if u.language == language]
        scores = score_utterances([utterances[i] for i in of_it], [hypotheses[i] for i in of_it])
        found = cast("Scores", scores.as_dict())
        out[language] = {
            "clips": len(of_it),
            "wer": found["wer"],
            "wer_ci": found["wer_ci"],
            "wer_folded": found["wer_folded"],
            "cer": found["cer"],
            "cer_ci": found["cer_ci"],
            "headline": found["headline"],
        }
    return out


def abridged_rows(section: Section, systems: Sequence[System], bundle: Path) -> list[Measured]:
    """A bundle's own rows, abridged for its manifest."""
    names = ("name", "precision", "wer", "wer_ci", "wer_folded", "cer", "cer_ci", "headline", "latency_ms", "rtfx", "size_mb",
             "peak_rss_mb", "speedup", "wer_difference", "cer_difference")  # fmt: skip
    rows = [dict(row) for row, system in zip(section["systems"], systems, strict=True) if system.bundle == bundle]
    return [cast("Measured", {name: row[name] for name in names if name in row}) for row in rows]


def graphs_of(system: System) -> list[str]:
    """Files of a system's graphs, as its bundle names them."""
    return list(open_manifest(system.bundle).content["precisions"][system.precision].values())
