"""Find a student's fastest precision on this machine within a budget of WER, size, memory and latency.

First, encoder and decoder are each measured alone in every scheme, with the other in fp32; a model with a CTC head is one part. If a useful scheme exceeds the WER limit, its
most sensitive layers stay in fp32. Then the surviving combinations are measured, interleaved, on the validation clips. The choice is
confirmed once on the test clips.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypedDict, Unpack, cast

from export.assembly.build import calibration_features, check_exporter, check_has_no_decoder_options, export_bundle
from export.bundle.manifest import BUNDLE, open_manifest, record
from export.edge.bundle.content import Searched
from export.measurement.latency import System
from export.measurement.timing import time_on
from export.quantization.int8 import Int8Options
from export.quantization.precisions import Precision, parse_precision
from export.quantization.quantize import calibration_clips
from export.search.budget import Budget, Profile, parse_budget, read_profile
from export.search.candidates import FP32, Candidates, quantize_only, row
from export.search.outcome import SearchResult
from export.search.rows import TIMES, Confirmed, Figure, Row
from export.search.table import print_search
from workbench.config.schemes import WITH_LAYERS, Scheme
from workbench.core.atomic import staging_folder
from workbench.core.errors import UserError
from workbench.core.machine.host import describe_host, has_int8_dot_product, usable_cpus
from workbench.core.ownership import check_output, check_replaceable
from workbench.corpus import Utterance, scored_clips
from workbench.evaluation.scoring import paired_difference
from workbench.models import has_ctc_head
from workbench.models.resolve import fingerprint

log = logging.getLogger("workbench")
FP32_BOTH = Precision(FP32, FP32)
DEFAULT_BUDGET = "wer<=+0.5"
MAX_KEPT = 2  # layers that may stay in fp32
NEARLY = 1.03  # latencies within this factor count as equal: then the smaller precision wins
GOOD: tuple[Figure, ...] = ("p50_ms", "size_mb", "peak_rss_mb", "wer")  # lower is better for all


class Other(TypedDict, total=False):
    """Arguments of `export_bundle` besides a checkpoint, an output, precisions and the quantizers' options."""

    name: str
    overwrite: bool
    vocabulary: str
    texts: Sequence[str]
    aligned: Sequence[Utterance]
    through: str


def search(
    candidates: Candidates, budget: Budget, profile: Profile, validation: Sequence[Utterance], test: Sequence[Utterance], threads: int,
    whole: Path | None = None,
) -> SearchResult:  # fmt: skip
    """Measure, choose, confirm.

    Args:
        candidates: makes and measures the bundle in each precision.
        budget: limits that the choice must meet.
        profile: which schemes to try.
        validation: clips to choose on.
        test: clips to confirm on; not used before the choice is made.
        threads: number of threads of the runtime.
        whole: the fp32 bundle with the full vocabulary, if the searched one is pruned; WER is compared with it, so that the cost of pruning counts.

    Returns:
        What was measured; `chosen` is None if nothing meets the budget.
    """
    budget = profile.limited(budget)
    encoder = [parse_precision(f"{name}/fp32").encoder for name in profile.encoder]
    parts = {"encoder": encoder, "decoder": [parse_precision(f"fp32/{name}").decoder for name in profile.decoder]}
    if candidates.has_ctc_head:
        parts = {"ctc": encoder}
    rows = candidates.measure(
        [FP32_BOTH, *(quantize_only(part, s) for part, schemes in parts.items() for s in schemes)], validation, threads
    )
    before = System("fp32, all tokens", "student", whole, "fp32") if whole else None
    own = rows["fp32"]["wer"]
    if before:
        own = row(before.name, time_on([before], validation, threads)[0], validation)["wer"]
    wer = Budget(wer_above=budget.wer_above, wer=budget.wer)
    right = {name for name, found in rows.items() if not wer.violations(found, own)}
    layers: dict[str, list[float]] = {}
    forms = {part: list(schemes) for part, schemes in parts.items()}
    for part, scheme in _worth_mending(rows, parts, right):
        errors = layers[f"{part} {scheme.label}"] = candidates.layer_errors(part, scheme, validation)
        worst = sorted(range(len(errors)), key=lambda i: -errors[i])
        # with every layer kept in fp32 it would be fp32
        most = min(MAX_KEPT, len(errors) - 1)
        forms[part] += [Scheme(scheme.name, tuple(sorted(worst[:n]))) for n in range(1, most + 1)]
    if new := [p for part, schemes in forms.items() for s in schemes if (p := quantize_only(part, s)).name not in rows]:
        rows |= candidates.measure(new, validation, threads)
    right = {"fp32"} | {name for name, found in rows.items() if not wer.violations(found, own)}
    best = {part: _unbeaten(rows, part, schemes, right) for part, schemes in forms.items()}
    # the uniform precisions are always measured, even over the WER limit
    if candidates.has_ctc_head:
        products = [FP32_BOTH, *(Precision(s, s) for s in dict.fromkeys([*encoder, *best["ctc"]]))]
    else:
        plain = [Precision(s, s) for s in encoder if s in parts["decoder"]]
        products = [FP32_BOTH, *plain, *(Precision(e, d) for e in best["encoder"] for d in best["decoder"])]
    log.info("measuring %d precisions on %d clips", len(set(products)), len(validation))
    final = candidates.measure(products, validation, threads)
    rows |= final  # interleaved measurements supersede earlier ones
    for found in rows.values():
        found["over"] = round(budget.relative_excess(found, own), 4)
        found["breaks"] = budget.violations(found, own)
        found["compared"] = found["name"] in final  # in the same run as the choice
        found["pareto"] = found["compared"] and not any(_dominates(other, found) for other in final.values())
    chosen = _choose(list(final.values()))
    confirmed = _confirmed(candidates, chosen, test, threads, before) if test and chosen else None
    return SearchResult(
        chosen, list(rows.values()), layers, _notes(rows, list(parts), own if before else None), confirmed
    )


def _worth_mending(rows: dict[str, Row], parts: dict[str, list[Scheme]], right: set[str]) -> list[tuple[str, Scheme]]:
    """Schemes over the WER limit that support fp32 layers and that no scheme within the limit dominates, for each part."""
    return [
        (part, scheme)
        for part, schemes in parts.items()
        for scheme in schemes
        if quantize_only(part, scheme).name not in right
        and scheme.name in WITH_LAYERS
        and not scheme.kept
        and scheme in _unbeaten(rows, part, schemes, right | {quantize_only(part, scheme).name})
    ]


def _unbeaten(rows: dict[str, Row], part: str, schemes: Sequence[Scheme], right: set[str]) -> list[Scheme]:
    """A part's Pareto-optimal schemes, in time and size, among those within the WER limit."""
    good = {s: rows[name] for s in schemes if (name := quantize_only(part, s).name) in right}
    keys: tuple[Figure, ...] = (TIMES[part], "size_mb")
    return [s for s, found in good.items() if not any(_dominates(other, found, keys) for other in good.values())]


def _dominates(one: Row, other: Row, keys: Sequence[Figure] = GOOD) -> bool:
    """Whether one is no worse in anything and better in something (Pareto dominance)."""
    return all(one[k] <= other[k] for k in keys) and any(one[k] < other[k] for k in keys)


def _choose(rows: Sequence[Row]) -> Precision | None:
    """The smallest of the precisions within the budget that are nearly as fast as the fastest; None if there is none."""
    within = [r for r in rows if not r["breaks"]]
    fastest = min((r["p50_ms"] for r in within), default=0.0)
    nearly = [r for r in within if r["p50_ms"] <= NEARLY * fastest]
    return parse_precision(min(nearly, key=lambda r: float(r["size_mb"]))["name"]) if nearly else None


def _notes(rows: dict[str, Row], parts: Sequence[str], whole_wer: float | None) -> list[str]:
    """Notes: int8's speed relative to fp32 on this machine, and the WER cost of vocabulary pruning."""
    slow = ", so it is slower"
    if not has_int8_dot_product():
        slow += ": this CPU has no int8 dot product (VNNI, or Arm's), so int8 only saves memory"
    notes = []
    for part in parts:
        if found := rows.get(quantize_only(part, Scheme("int8")).name):
            ratio = found[TIMES[part]] / rows["fp32"][TIMES[part]]
            faster = f"on this machine the {'model' if part == 'ctc' else part} takes {ratio:.2f} times as long in int8 as in fp32"
            notes.append(faster if ratio < 1 else faster + slow)
    if whole_wer is not None:
        cost = rows["fp32"]["wer"] - whole_wer
        notes.append(
            f"vocabulary pruning alone changes WER by {cost:+.2f} points ({whole_wer:.2f} with the full vocabulary)"
        )
    return notes


def _confirmed(
    candidates: Candidates, chosen: Precision, test: Sequence[Utterance], threads: int, before: System | None
) -> Confirmed:
    """The choice against fp32 with the full vocabulary, on clips not used for choosing."""
    log.info("confirming %s on %d test clips", chosen.name, len(test))
    fp32 = before or candidates.add(FP32_BOTH)
    systems = [fp32] if chosen == FP32_BOTH and not before else [fp32, candidates.add(chosen)]
    timed = time_on(systems, test, threads)
    rows = [row(s.name, t, test) for s, t in zip(systems, timed, strict=True)]
    texts, languages = [u.text for u in test], [u.language for u in test]
    difference = paired_difference(texts, timed[-1].hypotheses, timed[0].hypotheses, languages)
    return {
        "clips": len(test),
        "systems": rows,
        "wer_difference": difference,
        "speedup": round(rows[0]["p50_ms"] / rows[-1]["p50_ms"], 2),
    }


def export_for(
    checkpoint: Path, output: Path, budget: str, device: Path | None, corpus: str, options: Int8Options, threads: int | None,
    **how: Unpack[Other],
) -> tuple[Path, SearchResult | None]:  # fmt: skip
    """Search on a corpus, then export the chosen precision along with fp32, for verification.

    Args:
        checkpoint: the student.
        output: the bundle's folder.
        budget: limits, as for `parse_budget`; DEFAULT_BUDGET if empty.
        device: path of a device profile; this machine by default.
        corpus: validation clips are used to choose, test clips to confirm, training clips to calibrate.
        options: options of the quantizers; if they leave `reduce_range` open, the device profile decides.
        threads: number of threads of the runtime; by default the device's.
        how: further arguments of `export_bundle`: name, overwrite, vocabulary, texts, aligned, through.

    Returns:
        The bundle's folder and the search result; None if the folder already holds the result of the same search on the same CPU.

    Raises:
        UserError: budget, device or checkpoint cannot be used, the folder holds something else, or nothing meets the budget.
    """
    through, one_part = how.get("through", "workbench"), has_ctc_head(checkpoint)
    if one_part:
        check_has_no_decoder_options(checkpoint, how.get("vocabulary", ""), through)
    check_exporter(through)
    check_output(output, [checkpoint])
    profile = read_profile(device) if device else Profile()
    if one_part and "decoder" in profile.model_fields_set:
        log.info(
            "%s has a CTC head and no decoder; the schemes of the device profile's `encoder` are tried", checkpoint
        )
    budget = budget or DEFAULT_BUDGET
    limits = parse_budget(budget)
    if options.reduce_range is None and profile.int8_dot_product is not None:
        options = replace(options, reduce_range=not profile.int8_dot_product)
    threads = threads or profile.threads or usable_cpus()
    asked = {
        "budget": budget,
        "device": profile.name,
        "profile": profile.model_dump(),
        "options": asdict(options),
        "corpus": corpus,
        "threads": threads,
        "cpu": describe_host()["cpu"],
    }
    if (output / "bundle.json").is_file() and not how.get("overwrite"):
        _same_search(output, checkpoint, asked, how.get("vocabulary", ""), through)
        log.info("%s already holds the result of this search; add --overwrite to search again", output)
        return output, None
    check_replaceable(output, BUNDLE)
    waves = calibration_clips(corpus) if "int8_static" in profile.encoder else []
    validation, test = scored_clips(corpus, "validation"), scored_clips(corpus, "test")
    with staging_folder(output) as temporary:
        # the search ignores word timestamps: alignment heads are chosen once, for the final bundle
        plain: Other = {**how, "overwrite": False, "aligned": (), "through": "workbench"}
        first = export_bundle(checkpoint, temporary / "fp32", ["fp32"], **plain)
        inputs = [wave[None] for wave in waves] if one_part else calibration_features(checkpoint, waves)
        candidates = Candidates(first, options, inputs)
        # the budget covers the cost of vocabulary pruning
        whole = (
            export_bundle(checkpoint, temporary / "whole", ["fp32"], how.get("name", ""))
            if how.get("vocabulary")
            else None
        )
        found = search(candidates, limits, profile, validation, test, threads, whole)
    print_search(found)
    if not found.chosen:
        raise found.nothing_fits()
    precisions = list(dict.fromkeys(("fp32", found.name)))  # the demo and the card use the last one
    bundle = export_bundle(checkpoint, output, precisions, options=options, calibration=waves, **how)
    outcome = {**found.as_json(), **asked, "wer_above": limits.wer_above, "host": describe_host()}
    record(bundle, search=cast("Searched", outcome))
    return bundle, found


def _same_search(output: Path, checkpoint: Path, asked: Mapping[str, object], vocabulary: str, through: str) -> None:
    """Raise UserError, before anything is measured, unless a folder holds the result of the same search."""
    other = f"{output}: does not hold the result of this search; choose another -o, or add --overwrite"
    if not (output / "bundle.json").is_file():
        raise UserError(other)
    content = open_manifest(output, check=True).content
    done = content.get("search") or {}
    same = content["checkpoint_sha256"] == fingerprint(checkpoint) and all(done.get(k) == v for k, v in asked.items())
    same = same and content.get("through", "workbench") == through
    known = content.get("vocabulary")
    if not same or ((known["choice"] if known else "") or "") != vocabulary:
        raise UserError(other)
