"""Find the fastest form of a student on this machine that keeps within a budget of word errors, size and memory.

First each part alone in every scheme, the other in fp32: what it costs and what it gains. Where a scheme that gains breaks the
budget, the layers that suffer most stay in fp32. Then whole precisions of what is left, all on the validation clips, in turns.
The chosen one is confirmed on the test clips, once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypedDict, Unpack, cast

from export.assembly.build import calibration_features, check_exporter, export_bundle
from export.bundle.manifest import BUNDLE, open_manifest, record
from export.edge.bundle.content import Searched
from export.measurement.latency import System
from export.measurement.timing import time_on
from export.quantization.int8 import Int8Options
from export.quantization.precisions import WITH_LAYERS, Precision, Scheme, parse_precision
from export.quantization.quantize import calibration_clips
from export.search.budget import Budget, Profile, parse_budget, read_profile
from export.search.candidates import FP32, Candidates, quantize_only, row
from export.search.outcome import Search
from export.search.rows import TIMES, Confirmed, Figure, Row
from export.search.table import print_search
from workbench.core.atomic import workplace
from workbench.core.errors import UserError
from workbench.core.machine.host import describe_host, has_int8_dot_product, usable_cpus
from workbench.core.ownership import check_output, check_replaceable
from workbench.corpus import Utterance, scored_clips
from workbench.evaluation.scoring import paired_difference
from workbench.models.resolve import fingerprint

log = logging.getLogger("workbench")
FP32_BOTH = Precision(FP32, FP32)
DEFAULT_BUDGET = "wer<=+0.5"
MAX_KEPT = 2  # layers that may stay in fp32
NEARLY = 1.03  # latencies this near count as equal: then the smaller form is better
GOOD: tuple[Figure, ...] = ("p50_ms", "size_mb", "peak_rss_mb", "wer")  # less is better


class Other(TypedDict, total=False):
    """What `export_bundle` takes beside a checkpoint, a place, precisions and the quantizers' options."""

    name: str
    overwrite: bool
    vocabulary: str
    texts: Sequence[str]
    aligned: Sequence[Utterance]
    through: str


def search(
    candidates: Candidates, budget: Budget, profile: Profile, validation: Sequence[Utterance], test: Sequence[Utterance], threads: int,
    whole: Path | None = None,
) -> Search:  # fmt: skip
    """Measure, choose, confirm.

    Args:
        candidates: makes and measures the bundle in each precision.
        budget: limits that the choice must keep.
        profile: which schemes to try.
        validation: clips to choose on.
        test: clips to confirm on; none are looked at before the choice is made.
        threads: of the runtime.
        whole: the bundle in fp32 with the full vocabulary, if the searched one has fewer tokens; WER is compared with it, so that what they cost counts.

    Returns:
        What was measured; its choice is None where nothing keeps within the budget.
    """
    budget = profile.limited(budget)
    parts = {
        "encoder": [parse_precision(f"{name}/fp32").encoder for name in profile.encoder],
        "decoder": [parse_precision(f"fp32/{name}").decoder for name in profile.decoder],
    }
    rows = candidates.measure(
        [quantize_only(part, s) for part, schemes in parts.items() for s in schemes], validation, threads
    )
    before = System("fp32, all tokens", "student", whole, "fp32") if whole else None
    own = rows["fp32"]["wer"]
    if before:
        own = row(before.name, time_on([before], validation, threads)[0], validation)["wer"]
    wer = Budget(wer_above=budget.wer_above, wer=budget.wer)
    right = {name for name, found in rows.items() if not wer.broken(found, own)}
    layers: dict[str, list[float]] = {}
    forms = {part: list(schemes) for part, schemes in parts.items()}
    for part, scheme in _worth_mending(rows, parts, right):
        errors = layers[f"{part} {scheme.label}"] = candidates.layer_errors(part, scheme, validation)
        worst = sorted(range(len(errors)), key=lambda i: -errors[i])
        # with every layer in fp32 again it would be fp32
        most = min(MAX_KEPT, len(errors) - 1)
        forms[part] += [Scheme(scheme.name, tuple(sorted(worst[:n]))) for n in range(1, most + 1)]
    if new := [p for part, schemes in forms.items() for s in schemes if (p := quantize_only(part, s)).name not in rows]:
        rows |= candidates.measure(new, validation, threads)
    right = {"fp32"} | {name for name, found in rows.items() if not wer.broken(found, own)}
    best = {part: _unbeaten(rows, part, schemes, right) for part, schemes in forms.items()}
    # what everybody knows is measured, too, within the WER or not
    plain = [Precision(s, s) for s in parts["encoder"] if s in parts["decoder"]]
    products = [FP32_BOTH, *plain, *(Precision(e, d) for e in best["encoder"] for d in best["decoder"])]
    log.info("measuring %d precisions on %d clips", len(set(products)), len(validation))
    final = candidates.measure(products, validation, threads)
    rows |= final  # those that took turns with each other count
    for found in rows.values():
        found["over"] = round(budget.excess(found, own), 4)
        found["breaks"] = budget.broken(found, own)
        found["compared"] = found["name"] in final  # with the choice, in one run
        found["pareto"] = found["compared"] and not any(_dominates(other, found) for other in final.values())
    chosen = _choose(list(final.values()))
    confirmed = _confirmed(candidates, chosen, test, threads, before) if test and chosen else None
    return Search(chosen, list(rows.values()), layers, _notes(rows, own if before else None), confirmed)


def _worth_mending(rows: dict[str, Row], parts: dict[str, list[Scheme]], right: set[str]) -> list[tuple[str, Scheme]]:
    """Schemes of each part that break the WER, that may leave layers out, and that no scheme within it beats."""
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
    """Schemes of a part within the WER that no other such scheme beats in time and size."""
    good = {s: rows[name] for s in schemes if (name := quantize_only(part, s).name) in right}
    keys: tuple[Figure, ...] = (TIMES[part], "size_mb")
    return [s for s, found in good.items() if not any(_dominates(other, found, keys) for other in good.values())]


def _dominates(one: Row, other: Row, keys: Sequence[Figure] = GOOD) -> bool:
    """Whether one is at least as good in everything and better in something."""
    return all(one[k] <= other[k] for k in keys) and any(one[k] < other[k] for k in keys)


def _choose(rows: Sequence[Row]) -> Precision | None:
    """The fastest within the budget; of those nearly as fast the smallest. None where nothing keeps within it."""
    within = [r for r in rows if not r["breaks"]]
    fastest = min((r["p50_ms"] for r in within), default=0.0)
    nearly = [r for r in within if r["p50_ms"] <= NEARLY * fastest]
    return parse_precision(min(nearly, key=lambda r: float(r["size_mb"]))["name"]) if nearly else None


def _notes(rows: dict[str, Row], whole_wer: float | None) -> list[str]:
    """Where int8 is no faster than fp32 here, and what leaving out tokens costs, in words."""
    slow = ", it is slower"
    if not has_int8_dot_product():
        slow += ": this CPU has no int8 dot product (VNNI, or Arm's), so integers only save memory"
    notes = []
    for part in ("encoder", "decoder"):
        if found := rows.get(quantize_only(part, Scheme("int8")).name):
            ratio = found[TIMES[part]] / rows["fp32"][TIMES[part]]
            faster = f"int8 takes {ratio:.2f} of fp32's time in the {part} on this machine"
            notes.append(faster if ratio < 1 else faster + slow)
    if whole_wer is not None:
        cost = rows["fp32"]["wer"] - whole_wer
        notes.append(f"leaving out tokens costs {cost:+.2f} points of WER by itself ({whole_wer:.2f} with all of them)")
    return notes


def _confirmed(
    candidates: Candidates, chosen: Precision, test: Sequence[Utterance], threads: int, before: System | None
) -> Confirmed:
    """The choice against fp32, with all its tokens, on clips that had no say in it."""
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
) -> tuple[Path, Search | None]:  # fmt: skip
    """Search on a corpus, then export the chosen precision, with fp32 beside it for verification.

    Args:
        checkpoint: the student.
        output: the bundle's folder.
        budget: limits, as for `parse_budget`; DEFAULT_BUDGET where it is empty.
        device: a profile's file; this machine by default.
        corpus: its validation clips are chosen on, its test clips confirm, its training clips calibrate.
        options: of the quantizers; the device says of how many bits, unless they do.
        threads: of the runtime; the device's by default.
        how: what else `export_bundle` takes: name, overwrite, vocabulary, texts, aligned, through.

    Returns:
        The bundle's folder, and what was found; None where the folder holds what this very search found on this kind of machine.

    Raises:
        UserError: budget, device or checkpoint cannot be used, the folder holds something else, or nothing keeps within the budget.
    """
    through = how.get("through", "workbench")
    check_exporter(through)
    check_output(output, [checkpoint])
    profile = read_profile(device) if device else Profile()
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
        log.info("%s holds what this search found; add --overwrite to search anew", output)
        return output, None
    check_replaceable(output, BUNDLE)
    waves = calibration_clips(corpus) if "int8_static" in profile.encoder else []
    validation, test = scored_clips(corpus, "validation"), scored_clips(corpus, "test")
    with workplace(output) as temporary:
        # word times are no part of what is searched for: their heads are chosen once, for the bundle that comes of it
        plain: Other = {**how, "overwrite": False, "aligned": (), "through": "workbench"}
        first = export_bundle(checkpoint, temporary / "fp32", ["fp32"], **plain)
        candidates = Candidates(first, options, calibration_features(checkpoint, waves))
        # a vocabulary's loss is part of what the budget is for
        whole = (
            export_bundle(checkpoint, temporary / "whole", ["fp32"], how.get("name", ""))
            if how.get("vocabulary")
            else None
        )
        found = search(candidates, limits, profile, validation, test, threads, whole)
    print_search(found)
    if not found.chosen:
        raise found.nothing_fits()
    precisions = list(dict.fromkeys(("fp32", found.name)))  # the demo and the card take the last
    bundle = export_bundle(checkpoint, output, precisions, options=options, calibration=waves, **how)
    outcome = {**found.as_json(), **asked, "wer_above": limits.wer_above, "host": describe_host()}
    record(bundle, search=cast("Searched", outcome))
    return bundle, found


def _same_search(output: Path, checkpoint: Path, asked: Mapping[str, object], vocabulary: str, through: str) -> None:
    """Raise UserError, before anything is measured, unless a folder holds the outcome of this very search."""
    other = f"{output}: holds something else than this search's outcome; choose another -o, or add --overwrite"
    if not (output / "bundle.json").is_file():
        raise UserError(other)
    content = open_manifest(output, check=True).content
    done = content.get("search") or {}
    same = content["checkpoint_sha256"] == fingerprint(checkpoint) and all(done.get(k) == v for k, v in asked.items())
    same = same and content.get("through", "workbench") == through
    known = content.get("vocabulary")
    if not same or ((known["choice"] if known else "") or "") != vocabulary:
        raise UserError(other)
