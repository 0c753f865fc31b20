"""Measure bundles against their teacher in one run on the same clips: WER, CER, latency, memory and size."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from export.assembly.teacher import short_name, teacher_bundle
from export.bundle.manifest import open_manifest, record
from export.edge.bundle.content import Corpus, Measurement
from export.measurement.content import SCHEMA, Report, Section
from export.measurement.curves import curves_of_run
from export.measurement.decoding import GREEDY, Decoding
from export.measurement.flops import sizes_of
from export.measurement.latency import BenchmarkResult, System
from export.measurement.leaderboard import preset_corpora, scored_by_leaderboard
from export.measurement.robustness import check_robustness
from export.measurement.rows import abridged_rows, graphs_of, system_row
from export.measurement.timing import time_on
from export.verification.clients import has_graphs_of
from workbench.config.named_corpora import is_dataset
from workbench.core.atomic import recover
from workbench.core.errors import UserError
from workbench.core.files import read_json, write_json
from workbench.core.hashing import hash_json
from workbench.core.machine.host import describe_host, usable_cpus
from workbench.core.progress import step
from workbench.corpus import Utterance, corpus_identity, open_corpus, same_corpus
from workbench.evaluation.scoring import headline, normalizers_of, paired_difference

log = logging.getLogger("workbench")


@dataclass(frozen=True)
class Clips:
    """The clips of one corpus to measure on."""

    corpus: str
    split: str
    utterances: Sequence[Utterance]  # those whose reference can be scored
    left_out: int  # clips not scored because their reference is known to omit words

    @property
    def languages(self) -> list[str]:
        """Whisper's language code of each clip."""
        return [u.language for u in self.utterances]


def measure(
    bundles: Sequence[Path],
    teacher: str,
    output: Path,
    corpora: Sequence[str] = ("prompts-en",),
    split: str = "test",
    limit: int | None = None,
    threads: int | None = None,
    repeats: int = 1,
    again: bool = False,
    robustness: bool = True,
    preset: str = "",
    decoding: Decoding = GREEDY,
) -> Report:
    """Measure every precision of some bundles, and their teacher in fp32 at 30 s in the same ONNX runtime.

    Args:
        bundles: folders of bundles; all precisions of each are measured.
        teacher: name of the teacher, as for `resolve_teacher`, or the path of its bundle.
        output: folder for report.json and report.html.
        corpora: where the clips come from. The first is the report's main corpus; each further one gets its own section.
        split: the split of each corpus; test by default.
        limit: at most this many scored clips of each corpus.
        threads: number of threads of every system; all cores by default.
        repeats: passes over each clip; the median counts.
        again: measure again even if report.json already holds this measurement.
        robustness: also run every system on sounds without speech (`export/measurement/robustness.py`).
        preset: a leaderboard whose test sets are measured in place of `corpora`, and by whose protocol they are scored, too.
        decoding: beams and language model. What differs from greedy decoding is not recorded in the bundles.

    Returns:
        The report's content (docs/measuring.md describes it).

    Raises:
        UserError: a bundle is damaged, a corpus or the teacher cannot be obtained, a corpus is named twice, or the language model cannot be used.
    """
    from export.measurement.page import Source, write_page

    corpora = preset_corpora(preset) if preset else corpora
    if len(set(corpora)) < len(corpora):
        raise UserError(f"--corpus {' --corpus '.join(corpora)}: a corpus is named twice; name each once")
    report_path = output / "report.json"

    def show(report: Report) -> None:
        folders = {open_manifest(bundle).name: bundle.resolve().parent for bundle in bundles}
        # without recordings, which may be private: `workbench report` puts them in where that is wanted
        write_page([Source(output.resolve().name, report, folders)], output / "report.html", audio_clips=0)

    _check_report(report_path)
    threads = threads or usable_cpus()
    parts = [_clips(corpus, split, limit) for corpus in corpora]
    utterances = [u for part in parts for u in part.utterances]
    systems = _systems(bundles, teacher, decoding)
    decoding.check([open_manifest(bundle) for bundle in bundles])
    key = _key(systems, parts, threads, repeats, robustness)
    if report_path.is_file() and not again:
        known = cast("Report", read_json(report_path, "a report"))
        if known.get("key") == key:
            log.info("%s holds this measurement; add --remeasure to repeat it", report_path)
            if preset and "leaderboard" not in known:
                known["leaderboard"] = scored_by_leaderboard(known, limit)
                write_json(report_path, known)
            show(known)
            return known
    timed = time_on(systems, utterances, threads, repeats)
    sections = _sections(systems, timed, parts, bundles)
    report: Report = {
        "schema": SCHEMA,
        "key": key,
        "command": _command(bundles, teacher, [] if preset else corpora, split, limit, threads, repeats, robustness)
        + (f" --preset {preset}" if preset else "")
        + decoding.command(),
        "host": describe_host(),
        "threads": threads,
        "repeats": repeats,
        "corpus": sections[0]["corpus"],
        "systems": sections[0]["systems"],
        "clips": sections[0]["clips"],
        "other_corpora": sections[1:],
    }
    if not decoding.is_greedy:
        report["decoding"] = decoding.described()
    if robustness:
        with step("testing robustness on silence, noise, music and very short clips"):
            first = [found.part(slice(len(parts[0].utterances))) for found in timed]
            report["robustness"] = check_robustness(systems, first, parts[0].utterances, threads)
    curves = {open_manifest(bundle).name: curves_of_run(bundle.resolve().parent) for bundle in bundles}
    report["training"] = {name: found for name, found in curves.items() if found}
    if preset:
        report["leaderboard"] = scored_by_leaderboard(report, limit)
    write_json(report_path, report)
    show(report)
    for bundle in bundles if decoding.is_greedy else ():
        measurement: Measurement = {
            "corpus": _named(report),
            "host": report["host"],
            "threads": report["threads"],
            "systems": abridged_rows(sections[0], systems, bundle),
            "other_corpora": [
                {"corpus": _named(s), "systems": abridged_rows(s, systems, bundle)} for s in sections[1:]
            ],
        }
        record(bundle, measurement=measurement)
    return report


def _named(section: Section) -> Corpus:
    """A section's corpus by its name alone: a bundle is published, and a path says who keeps what where."""
    corpus = section["corpus"]
    return {**corpus, "name": corpus_identity(corpus["name"])["name"]}


def _command(
    bundles: Sequence[Path], teacher: str, corpora: Sequence[str], split: str, limit: int | None, threads: int, repeats: int, robustness: bool
) -> str:  # fmt: skip
    """The command that repeats a measurement, with its defaults written out."""
    words = ["workbench", "measure", *map(str, bundles), "--against", teacher]
    words += [word for corpus in corpora for word in ("--corpus", corpus)] + ["--split", split]
    words += ["--clips", str(limit)] if limit is not None else []
    words += ["--threads", str(threads), "--repeats", str(repeats)]
    return shlex.join(words if robustness else [*words, "--no-robustness"])


def _check_report(path: Path) -> None:
    """Raise UserError if a file that is not our report would be overwritten; `workbench report` may have written the page alone."""
    from export.measurement.page import is_page

    recover(path.parent)
    page = path.with_suffix(".html")
    if not path.exists() and (not page.exists() or is_page(page)):
        return
    found = read_json(path, "a report") if path.is_file() else None
    if not isinstance(found, dict) or not {"schema", "key", "systems"} <= found.keys():
        raise UserError(
            f"{path.parent}: holds a report that `workbench measure` did not write ({path.name} or .html); choose another --output, or move it away"
        )


def _clips(corpus: str, split: str, limit: int | None) -> Clips:
    found = open_corpus(corpus, split, limit if is_dataset(corpus) else None)
    scored = [u for u in found if u.scored][:limit]
    if not scored:
        raise UserError(f"corpus {corpus!r}: all clips of split {split!r} are marked as not scorable")
    return Clips(corpus, split, scored, sum(not u.scored for u in found))


def _systems(bundles: Sequence[Path], teacher: str, decoding: Decoding) -> list[System]:
    """The teacher and every precision of the bundles, with checksums verified."""
    systems = [System(f"{short_name(teacher)} (teacher)", "teacher", teacher_bundle(teacher), "fp32")]
    for bundle in bundles:
        manifest = open_manifest(bundle, check=True)
        if not has_graphs_of(manifest, "edge"):
            raise UserError(
                f"{bundle}: was packed for {manifest.packed_for}, but measuring needs our own runtime's graphs; measure the full bundle"
            )
        sizes_of(manifest)  # before hours of work, whether they are there
        systems += [System(f"{manifest.name} {p}", "student", bundle, p, decoding) for p in manifest.precisions]
    if len({s.name for s in systems}) < len(systems):
        raise UserError("two of the bundles have the same name and precision; export them with different --name")
    return systems


def _key(systems: Sequence[System], parts: Sequence[Clips], threads: int, repeats: int, robustness: bool) -> str:
    """Hash of everything that determines a report: graphs, clips with references and languages, normalizers, measurement settings."""
    graphs = [
        [s.name, sorted(open_manifest(s.bundle).content["files"].get(g, "") for g in graphs_of(s))] for s in systems
    ]
    clips = [
        [part.corpus, part.split, [[u.id, u.text, u.language, u.audio_sha256()] for u in part.utterances]]
        for part in parts
    ]
    normalizers = [normalizers_of(part.languages) for part in parts]
    found = [SCHEMA, graphs, clips, normalizers, threads, repeats, robustness, describe_host()["cpu"]]
    decoding = systems[-1].decoding
    return hash_json(found if decoding.is_greedy else [*found, decoding.described()])


def _sections(
    systems: Sequence[System], timed: Sequence[BenchmarkResult], parts: Sequence[Clips], bundles: Sequence[Path]
) -> list[Section]:
    """What was measured on each corpus."""
    out: list[Section] = []
    start = 0
    for part in parts:
        stop = start + len(part.utterances)
        out.append(_section(systems, [found.part(slice(start, stop)) for found in timed], part, bundles))
        start = stop
    return out


def _section(
    systems: Sequence[System], timed: Sequence[BenchmarkResult], part: Clips, bundles: Sequence[Path]
) -> Section:
    """One corpus's description, a row per system, and every clip's transcripts and times."""
    utterances = part.utterances
    rows = [system_row(system, found, utterances) for system, found in zip(systems, timed, strict=True)]
    texts = [u.text for u in utterances]
    for row, found in zip(rows[1:], timed[1:], strict=True):
        hypotheses = found.hypotheses, timed[0].hypotheses
        row["wer_difference"] = paired_difference(texts, *hypotheses, part.languages, unit="wer")
        row["cer_difference"] = paired_difference(texts, *hypotheses, part.languages, unit="cer")
        row["speedup"] = round(rows[0]["latency_ms"]["p50"] / row["latency_ms"]["p50"], 2)
        ratios = [a / b for a, b in zip(timed[0].total_ms, found.total_ms, strict=True)]
        row["speedup_per_clip_p50"] = round(float(np.median(ratios)), 2)
    return {
        "corpus": {
            "name": part.corpus,
            "split": part.split,
            "clips": len(utterances),
            "not_scored": part.left_out,
            "seconds": round(sum(u.seconds for u in utterances), 1),
            "headline": headline(part.languages),
            "normalizers": normalizers_of(part.languages),
            "trained_on": trained_on(part.corpus, bundles),
        },
        "systems": rows,
        "clips": [
            {
                "id": u.id,
                "seconds": u.seconds,
                "language": u.language,
                "reference": u.text,
                "hypotheses": {s.name: t.hypotheses[i] for s, t in zip(systems, timed, strict=True)},
                "stages_ms": {s.name: t.stages_ms[i] for s, t in zip(systems, timed, strict=True)},
            }
            for i, u in enumerate(utterances)
        ],
    }


def trained_on(corpus: str, bundles: Sequence[Path]) -> bool | None:
    """Whether any of the bundles' students was trained on a corpus's training split; None if a bundle does not record it."""
    here = corpus_identity(corpus)
    said = [(open_manifest(bundle).content.get("run") or {}).get("corpora") for bundle in bundles]
    if any(same_corpus(here, other) for corpora in said for other in corpora or []):
        return True
    return None if any(corpora is None for corpora in said) else False
