"""Find the fastest form of a student on this machine that keeps within a budget of word errors, size and memory.

First each part alone in every scheme, the other in fp32: what it costs and what it gains. Where a scheme that gains breaks the
budget, the layers that suffer most stay in fp32. Then whole precisions of what is left, all on the validation clips, in turns.
The chosen one is confirmed on the test clips, once.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.budget import Budget, Profile, parse_budget, read_profile
from export.bundle import calibration_features, export_bundle, open_manifest, record, size_mb
from export.int8 import Int8Options
from export.latency import System, Timed
from export.measure import time_on
from export.precisions import WITH_LAYERS, Precision, Scheme, parse_precision
from export.quantize import CALIBRATION_CLIPS
from export.sensitivity import Probe
from workbench.corpus import Utterance, open_corpus
from workbench.errors import UserError
from workbench.files import read_json, write_json
from workbench.host import describe_host, has_int8_dot_product, usable_cpus
from workbench.scoring import paired_difference, score

log = logging.getLogger("workbench")
FP32 = Scheme("fp32")
FP32_BOTH = Precision(FP32, FP32)
DEFAULT_BUDGET = "wer<=+0.5"
MOST_KEPT = 2  # layers that may stay in fp32
SENSITIVITY_CLIPS = 8
NEARLY = 1.03  # latencies this near count as equal: then the smaller form is better


@dataclass
class Search:
    """What was measured, and what was chosen."""

    chosen: Precision | None  # None: nothing keeps within the budget
    rows: list[dict[str, Any]]  # of every precision, on validation
    layers: dict[str, list[float]]  # part and scheme -> error of its output with that layer alone in the scheme
    notes: list[str] = field(default_factory=list)
    test: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The chosen precision's name; empty where there is none."""
        return self.chosen.name if self.chosen else ""

    def nothing_fits(self) -> UserError:
        """What to say where there is none."""
        nearest = min(self.rows, key=lambda row: float(row["over"]))
        return UserError(
            f"no precision keeps within the budget; nearest is {nearest['name']} ({', '.join(nearest['breaks'])}): "
            "widen --budget, or prune the vocabulary or layers"
        )

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {"chosen": self.name, "validation": self.rows, "layers": self.layers, "notes": self.notes, "test": self.test}  # fmt: skip


class Workshop:
    """A student's fp32 bundle in a folder of its own, to which precisions of our own runtime's graphs are added."""

    def __init__(self, bundle: Path, options: Int8Options, calibration: Sequence[Any]) -> None:
        self.bundle, self.options, self.calibration = bundle, options, calibration
        self.content = open_manifest(bundle).content

    def add(self, precision: Precision) -> System:
        """Make a precision's graphs unless they are there; returns it as a system to be timed."""
        parts = dict(self.content["precisions"]["fp32"])
        parts["encoder"] = self._graph(parts["encoder"], precision.encoder)
        parts["step"] = self._graph(parts["step"], precision.decoder)
        self.content["precisions"][precision.name] = parts
        write_json(self.bundle / "bundle.json", self.content)
        return System(precision.name, "student", self.bundle, precision.name)

    def _graph(self, name: str, scheme: Scheme) -> str:
        from export.quantize import quantize

        source = self.bundle / name
        if scheme != FP32 and not (source.parent / scheme.file(source.name)).is_file():
            quantize(source, scheme, self.options, self.calibration)
        return f"onnx/{scheme.file(source.name)}"


def search(
    workshop: Workshop, budget: Budget, profile: Profile, validation: Sequence[Utterance], test: Sequence[Utterance], threads: int,
    whole: Path | None = None,
) -> Search:  # fmt: skip
    """Measure, choose, confirm.

    Args:
        workshop: the student in fp32.
        budget: limits that the choice must keep.
        profile: which schemes to try.
        validation: clips to choose on.
        test: clips to confirm on; none are looked at before the choice is made.
        threads: of the runtime.
        whole: the bundle in fp32 with all tokens, where the workshop's lacks some: what leaving them out costs counts, too.

    Returns:
        What was measured; its choice is None where nothing keeps within the budget.
    """
    budget = profile.limited(budget)
    encoders = [parse_precision(f"{name}/fp32").encoder for name in profile.encoder]
    decoders = [parse_precision(f"fp32/{name}").decoder for name in profile.decoder]
    alone = [Precision(s, FP32) for s in encoders] + [Precision(FP32, s) for s in decoders]
    rows = _measured(workshop, alone, validation, threads)
    before = System("fp32, all tokens", "student", whole, "fp32") if whole else None
    own = (
        _row(before.name, time_on([before], validation, threads)[0], validation)["wer"]
        if before
        else rows["fp32"]["wer"]
    )
    layers: dict[str, list[float]] = {}
    wer = Budget(wer_above=budget.wer_above, wer=budget.wer)
    tried = {"encoder": encoders, "decoder": decoders}
    for part, schemes in tried.items():
        good = [rows[_alone(part, s).name] for s in schemes if not wer.broken(rows[_alone(part, s).name], own)]
        for scheme in list(schemes):
            row = rows[_alone(part, scheme).name]
            if row in good or scheme.name not in WITH_LAYERS or scheme.kept or any(_beats(g, row, part) for g in good):
                continue
            errors = _layer_errors(workshop, part, scheme, validation[:SENSITIVITY_CLIPS])
            layers[f"{part} {scheme.label}"] = errors
            worst = sorted(range(len(errors)), key=lambda i: -errors[i])
            # with every layer in fp32 again it would be fp32
            schemes += [
                Scheme(scheme.name, tuple(sorted(worst[:n]))) for n in range(1, min(MOST_KEPT, len(errors) - 1) + 1)
            ]
    new = [
        _alone(part, scheme)
        for part, schemes in tried.items()
        for scheme in schemes
        if _alone(part, scheme).name not in rows
    ]
    if new:
        rows |= _measured(workshop, new, validation, threads)
    products = [
        Precision(e, d)
        for e in _worth(rows, tried["encoder"], "encoder", wer, own)
        for d in _worth(rows, tried["decoder"], "decoder", wer, own)
    ]
    # what everybody knows is measured, too, within the WER or not
    plain = [Precision(s, s) for s in encoders if s in decoders]
    products = list(dict.fromkeys([FP32_BOTH, *plain, *products]))
    log.info("measuring %d precisions on %d clips", len(products), len(validation))
    final = _measured(workshop, products, validation, threads)
    rows |= final  # those that took turns with each other count
    for row in rows.values():
        row["over"] = round(budget.excess(row, own), 4)
        row["breaks"] = budget.broken(row, own)
        row["pareto"] = row["name"] in final and not any(_better(other, row) for other in final.values())
    found = Search(_choose(list(final.values())), list(rows.values()), layers, _notes(rows))
    if before:
        found.notes.append(
            f"leaving out tokens costs {rows['fp32']['wer'] - own:+.2f} points of WER by itself ({own:.2f} with all of them)"
        )
    if test and found.chosen:
        found.test = _confirmed(workshop, found.chosen, test, threads, before)
    return found


def _worth(
    rows: dict[str, dict[str, Any]], schemes: Sequence[Scheme], part: str, wer: Budget, own: float
) -> list[Scheme]:
    """Schemes of a part that keep the WER and that no other such scheme beats in time and size."""
    alone = {s: rows[_alone(part, s).name] for s in schemes}
    good = {s: row for s, row in alone.items() if s == FP32 or not wer.broken(row, own)}
    return [s for s, row in good.items() if not any(_beats(other, row, part) for other in good.values())]


def _beats(one: dict[str, Any], other: dict[str, Any], part: str) -> bool:
    """Whether one is quicker in this part and no larger, or smaller and no slower."""
    quick, small = one[f"{part}_ms"] - other[f"{part}_ms"], one["size_mb"] - other["size_mb"]
    return bool(max(quick, small) <= 0 and min(quick, small) < 0)


def _alone(part: str, scheme: Scheme) -> Precision:
    return Precision(scheme, FP32) if part == "encoder" else Precision(FP32, scheme)


def _measured(
    workshop: Workshop, precisions: Sequence[Precision], clips: Sequence[Utterance], threads: int
) -> dict[str, dict[str, Any]]:
    """A row for each precision, by name; all take turns on each clip."""
    systems = [workshop.add(precision) for precision in dict.fromkeys(precisions)]
    timed = time_on(systems, clips, threads)
    manifest = open_manifest(workshop.bundle)
    return {
        s.name: _row(s.name, t, clips) | {"size_mb": round(size_mb(manifest, s.precision), 1)}
        for s, t in zip(systems, timed, strict=True)
    }


def _row(name: str, timed: Timed, clips: Sequence[Utterance]) -> dict[str, Any]:
    said = score([u.text for u in clips], timed.hypotheses, clips[0].language)

    def middle(*stages: str) -> float:
        return round(float(np.median([sum(ms[s] for s in stages) for ms in timed.stages_ms])), 2)

    return {
        "name": name, "wer": round(said.wer, 3), "loops": said.loops, "p50_ms": middle(*timed.stages_ms[0]), "encoder_ms": middle("encoder"),
        "decoder_ms": middle("first_token", "rest"), "peak_rss_mb": round(timed.peak_rss_mb, 1),
    }  # fmt: skip


def _layer_errors(workshop: Workshop, part: str, scheme: Scheme, clips: Sequence[Utterance]) -> list[float]:
    """How far each layer moves the part's output when it alone is in the scheme, mean over clips, relative to fp32's."""
    count = int(read_json(workshop.bundle / "config.json", "a bundle's configuration")[f"{part}_layers"])
    if count < 2:
        return []
    log.info("sensitivity of the %s's %d layers in %s", part, count, scheme.name)
    probe = Probe(workshop.bundle, part, clips)
    errors = []
    for layer in range(count):
        others = tuple(i for i in range(count) if i != layer)
        system = workshop.add(_alone(part, Scheme(scheme.name, others)))
        errors.append(round(probe.error(system.precision), 5))
        workshop.content["precisions"].pop(system.precision)
    write_json(workshop.bundle / "bundle.json", workshop.content)
    return errors


def _better(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one is at least as good in everything and better in something."""
    keys = ("p50_ms", "size_mb", "peak_rss_mb", "wer")
    return all(one[k] <= other[k] for k in keys) and any(one[k] < other[k] for k in keys)


def _choose(rows: Sequence[dict[str, Any]]) -> Precision | None:
    """The fastest within the budget; of those nearly as fast the smallest. None where nothing keeps within it."""
    within = [row for row in rows if not row["breaks"]]
    fastest = min((row["p50_ms"] for row in within), default=0.0)
    nearly = [row for row in within if row["p50_ms"] <= NEARLY * fastest]
    return parse_precision(min(nearly, key=lambda row: row["size_mb"])["name"]) if nearly else None


def _notes(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Where int8 is no faster than fp32 here, in words."""
    why = (
        ""
        if has_int8_dot_product()
        else ": this CPU has no int8 dot product (VNNI, or Arm's), so integers only save memory"
    )
    notes = []
    for part in ("encoder", "decoder"):
        row = rows.get(_alone(part, Scheme("int8")).name)
        if row:
            ratio = row[f"{part}_ms"] / rows["fp32"][f"{part}_ms"]
            faster = f"int8 takes {ratio:.2f} of fp32's time in the {part} on this machine"
            notes.append(faster if ratio < 1 else f"{faster}, it is slower{why}")
    return notes


def _confirmed(
    workshop: Workshop, chosen: Precision, test: Sequence[Utterance], threads: int, before: System | None
) -> dict[str, Any]:
    """The choice against fp32, with all its tokens, on clips that had no say in it."""
    log.info("confirming %s on %d test clips", chosen.name, len(test))
    fp32 = before or workshop.add(FP32_BOTH)
    systems = [fp32] if chosen == FP32_BOTH and not before else [fp32, workshop.add(chosen)]
    timed = time_on(systems, test, threads)
    rows = [_row(s.name, t, test) for s, t in zip(systems, timed, strict=True)]
    texts, language = [u.text for u in test], test[0].language
    return {
        "clips": len(test),
        "systems": rows,
        "wer_difference": paired_difference(texts, timed[-1].hypotheses, timed[0].hypotheses, language),
        "speedup": round(rows[0]["p50_ms"] / rows[-1]["p50_ms"], 2),
    }


def print_search(found: Search) -> None:
    """Print the precisions, the choice first, and what the test clips say of it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "precision", "WER %", "p50 ms", "encoder ms", "decoder ms", "MB", "peak RSS MB", "", title="on validation"
    )
    for row in sorted(found.rows, key=lambda r: (r["name"] != found.name, r["p50_ms"])):
        mark = (
            "chosen" if row["name"] == found.name else ", ".join(row["breaks"]) or ("Pareto" if row["pareto"] else "")
        )
        numbers = (f"{row[k]:g}" for k in ("wer", "p50_ms", "encoder_ms", "decoder_ms", "size_mb", "peak_rss_mb"))
        table.add_row(row["name"], *numbers, mark)
    console = Console(width=max(Console().width, 120))
    console.print(table)
    for note in found.notes:
        console.print(note)
    if found.test:
        against = found.test["wer_difference"]
        console.print(
            f"{found.name} on {found.test['clips']} test clips: WER {found.test['systems'][-1]['wer']:.2f} %, "
            f"{against['points']:+.2f} points against fp32 ({against['ci'][0]:+.2f} to {against['ci'][1]:+.2f}), {found.test['speedup']} times as fast"
        )


def export_for(
    checkpoint: Path, output: Path, budget: str, device: Path | None, corpus: str, options: Int8Options, threads: int | None,
    **how: Any,
) -> tuple[Path, Search]:  # fmt: skip
    """Search on a corpus, then export the chosen precision, with fp32 beside it for verification.

    Args:
        checkpoint: the student.
        output: the bundle's folder.
        budget: limits, as for `parse_budget`; DEFAULT_BUDGET where it is empty.
        device: a profile's file; this machine by default.
        corpus: its validation clips are chosen on, its test clips confirm, its training clips calibrate.
        options: of the quantizers; the device says of how many bits, unless they do.
        threads: of the runtime; the device's by default.
        how: what else `export_bundle` takes: name, overwrite, vocabulary, texts.

    Returns:
        The bundle's folder, and what was found.

    Raises:
        UserError: budget, device or checkpoint cannot be used, or nothing keeps within the budget.
    """
    profile = read_profile(device) if device else Profile()
    budget = budget or DEFAULT_BUDGET
    limits = parse_budget(budget)
    if options.reduce_range is None and profile.int8_dot_product is not None:
        options = replace(options, reduce_range=not profile.int8_dot_product)
    threads = threads or profile.threads or usable_cpus()
    static = "int8_static" in profile.encoder
    waves = [u.wave() for u in open_corpus(corpus, "train", CALIBRATION_CLIPS)] if static else []
    validation, test = open_corpus(corpus, "validation"), open_corpus(corpus, "test")
    with tempfile.TemporaryDirectory() as temporary:
        first = export_bundle(checkpoint, Path(temporary) / "fp32", ["fp32"], **{**how, "overwrite": False})
        workshop = Workshop(first, options, calibration_features(checkpoint, waves))
        # a vocabulary's loss is part of what the budget is for
        whole = (
            export_bundle(checkpoint, Path(temporary) / "whole", ["fp32"], how.get("name", ""))
            if how.get("vocabulary")
            else None
        )
        found = search(workshop, limits, profile, validation, test, threads, whole)
    print_search(found)
    if not found.chosen:
        raise found.nothing_fits()
    precisions = list(dict.fromkeys(("fp32", found.name)))  # the demo and the card take the last
    bundle = export_bundle(checkpoint, output, precisions, options=options, calibration=waves, **how)
    record(bundle, search={**found.as_json(), "budget": budget, "wer_above": limits.wer_above, "device": profile.name, "corpus": corpus, "threads": threads, "host": describe_host()})  # fmt: skip
    return bundle, found
