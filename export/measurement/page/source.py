"""What a report is made from: a run's report.json, checked, its folder, and the audio of its clips where the corpus is on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from export.edge.bundle.fields import Check, array, choice, fields, integer, mapping, number, text
from export.measurement.content import SCHEMA, Curves, Report, Section
from export.measurement.curves import curves_of_run
from export.measurement.robustness import SPEECHLESS
from workbench.config.named_corpora import is_dataset
from workbench.core.errors import UserError, first_line
from workbench.core.files import read_object
from workbench.corpus import Utterance, open_corpus

MOST = 1_000_000
RUN_FILES = ("recipe.yaml", "metrics.jsonl", "weights.parquet", "scores.json")


@dataclass(frozen=True)
class Source:
    """One run of a report."""

    name: str
    report: Report | None  # None where the run was not measured
    folders: Mapping[str, Path]  # by name of the student, the folder of the run that it comes from

    def curves(self) -> dict[str, Curves]:
        """Learning curves by name of the student: those that the report holds, or else its run's folder; raises UserError for a broken log."""
        kept = self.report.get("training") if self.report is not None else None
        if kept:
            return dict(kept)
        found = {name: curves_of_run(folder) for name, folder in self.folders.items()}
        return {name: curves for name, curves in found.items() if curves}

    def clips(self, section: Section) -> tuple[dict[str, Utterance], str]:
        """A section's clips by id, those whose recording is on this machine; and why they are left out if none is."""
        corpus = section["corpus"]
        try:
            utterances = _opened(corpus["name"], corpus["split"])
        except (UserError, OSError) as error:
            return {}, first_line(error)
        by_id = {u.id: u for u in utterances}
        same = {c["id"]: by_id[c["id"]] for c in section["clips"] if c["id"] in by_id and _same(by_id[c["id"]], c)}
        return same, "" if same else f"the clips of {corpus['name']} on this machine are others than the measured ones"


def _same(utterance: Utterance, clip: Mapping[str, Any]) -> bool:
    return abs(utterance.seconds - float(clip["seconds"])) < 0.05 and utterance.text == clip["reference"]


def _opened(corpus: str, split: str) -> Sequence[Utterance]:
    if is_dataset(corpus):
        raise UserError(f"{corpus} is a hub's dataset, which is not fetched for a report")
    return open_corpus(corpus, split)


def read_sources(folders: Sequence[Path]) -> list[Source]:
    """Read runs and measurements.

    Args:
        folders: run folders, or folders that hold a report.json of `workbench measure`.

    Raises:
        UserError: a folder holds neither, is named twice, or its report.json is not one of `measure`.
    """
    for number_, folder in enumerate(folders):
        if folder.resolve() in {other.resolve() for other in folders[:number_]}:
            raise UserError(f"{folder}: is named twice; name each run once")
    return [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """What to call each folder: its name, with as many of those above it as tell all apart."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def scores_of(folder: Path) -> dict[str, Any] | None:
    """The scores.json of a finished run; None if there is none, or it is not one of ours."""
    try:
        content = read_object(folder / "scores.json", "a run's scores")
        _SCORES("scores", content)
    except (UserError, ValueError):
        return None
    return content


def _read(folder: Path, name: str) -> Source:
    path = folder / "report.json"
    if path.exists():
        return Source(name, read_report(path), {name: folder})
    if any((folder / file).is_file() for file in RUN_FILES):
        return Source(name, None, {name: folder})
    raise UserError(f"{folder}: holds neither report.json (of `workbench measure`) nor a run (of `workbench distill`)")


def read_report(path: Path) -> Report:
    """Read a report.json; raises UserError that names the file and the first wrong field."""
    content = read_object(path, "a report of `workbench measure`")
    if content.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: field 'schema' is {json.dumps(content.get('schema'))}, expected {SCHEMA}: not a report of this version's `workbench measure`; measure again"
        )
    try:
        _REPORT("report", content)
        for number_, section in enumerate((content, *content["other_corpora"])):
            _check_names(section, content if number_ else None)
        _check_robustness(content)
    except ValueError as error:
        raise UserError(f"{path}: {error}; measure again") from None
    return cast("Report", content)


def _check_names(section: dict[str, Any], first: dict[str, Any] | None) -> None:
    """Raise ValueError unless the teacher comes first, students have differences, and every clip has what every system wrote."""
    systems = section["systems"]
    names = [system["name"] for system in systems]
    if len(set(names)) < len(names) or (first is not None and names != [s["name"] for s in first["systems"]]):
        raise ValueError("field 'systems' does not hold each system once, and the same ones for each corpus")
    if systems[0]["kind"] != "teacher" or any(s["kind"] != "student" for s in systems[1:]):
        raise ValueError("field 'systems' does not begin with the only teacher")
    for system in systems[1:]:
        for name in ("wer_difference", "cer_difference", "speedup"):
            if name not in system:
                raise ValueError(f"system {system['name']!r}: field {name!r} is missing")
        if set(system["by_language"]) != set(systems[0]["by_language"]):
            raise ValueError(f"system {system['name']!r}: field 'by_language' has other languages than the teacher's")
    for clip in section["clips"]:
        for kind in ("hypotheses", "stages_ms"):
            if set(clip[kind]) != set(names):
                raise ValueError(f"clip {clip['id']!r}: field {kind!r} does not hold every system")


def _check_robustness(content: dict[str, Any]) -> None:
    """Raise ValueError unless every system has figures for every kind of sound."""
    found = content.get("robustness", {"sounds": {}, "systems": {}})
    kinds = set(found["sounds"])
    for name, row in found["systems"].items():
        if not {*SPEECHLESS, *kinds} <= row.keys() or any(
            {"wrote", "words", "loops"} - row[kind].keys() for kind in kinds
        ):
            raise ValueError(f"field 'robustness': system {name!r} does not have figures for every kind of sound")
        short = row.get("one word", {})
        if "clips" not in short or (short["clips"] and "wer" not in short):
            raise ValueError(f"field 'robustness': system {name!r} has no figures for one-word clips")
    if found["systems"] and not set(SPEECHLESS) <= kinds:
        raise ValueError(f"field 'robustness.sounds' lacks some of {', '.join(SPEECHLESS)}")


def _written(field_: str, value: object) -> None:
    """Any text."""
    if not isinstance(value, str):
        raise ValueError(f"field {field_!r} is not a text")  # noqa: TRY004  as every check


def _real(field_: str, value: object) -> None:
    """Any number: the loss of a run that diverged may be NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"field {field_!r} is not a number")  # noqa: TRY004  as every check


def _maybe(check: Check) -> Check:
    def either(field_: str, value: object) -> None:
        if value is not None:
            check(field_, value)

    return either


_amount = number(0, 1e12)
_positive = number(1e-6, 1e12)
_points = number(-1e9, 1e9)
_interval = _maybe(array(_points, 2, 2))
_difference = fields(points=_points, ci=_interval)
_rates = {
    "wer": _amount,
    "wer_ci": _interval,
    "wer_folded": _amount,
    "cer": _amount,
    "cer_ci": _interval,
    "headline": choice("wer", "cer"),
}
_count = integer(0, 10**12)
_system = fields(
    name=_written, kind=choice("teacher", "student"), precision=text, runtime=_written, parameters=_count, size_mb=_amount,
    substitutions=_count, deletions=_count, insertions=_count, loops=_count, latency_ms=fields(p50=_positive, p95=_positive),
    stages_ms=mapping(text, _amount), rtfx=_amount, load_ms=_amount, peak_rss_mb=_amount, speedup_=_positive, wer_difference_=_difference,
    cer_difference_=_difference, by_language=mapping(text, fields(clips=_count, **_rates)), graphs_sha256_=mapping(_written, _written), **_rates,
)  # fmt: skip
_clip = fields(
    id=_written, seconds=_amount, language=text, reference=_written, hypotheses=mapping(_written, _written, 1),
    stages_ms=mapping(_written, mapping(text, _amount), 1),
)  # fmt: skip
_corpus = fields(
    name=_written, split=_written, clips=integer(1, MOST), not_scored=_count, seconds=_amount, headline=choice("wer", "cer"),
    normalizers=mapping(text, _written), trained_on=_maybe(choice(True, False)),
)  # fmt: skip
_section = {"corpus": _corpus, "systems": array(_system, 1, 10_000), "clips": array(_clip, 1, MOST)}
_losses = array(_real, 1, MOST)
_curves = fields(
    steps=array(_count, 1, MOST), stage=array(text, 1, MOST), loss=_losses, task=_losses, distillation=_losses, matching=_losses,
    validation=array(fields(step=_count, wer=_amount, cer=_amount), 0, MOST),
)  # fmt: skip
_heard = fields(wrote_=_count, words_=_count, loops_=_count, stopped_by_cap_=_count, clips_=_count, wer_=_amount)
_robustness = fields(
    sounds=mapping(_written, fields(clips=integer(1, MOST), taken_for_speech_=_count)),
    systems=mapping(_written, mapping(_written, _heard)),
)
_host = fields(
    system=_written,
    python=_written,
    cpu=_written,
    cpus=_count,
    cpu_flags=array(_written, 0, 1000),
    memory_gb=_amount,
    versions=mapping(_written, _written),
)
_leaderboard = fields(
    preset=_written, version=_written, source=_written, normalizer=_written, clips=mapping(_written, _count),
    not_scored=mapping(_written, _count), differs=array(_written, 0, 100),
    systems=mapping(_written, fields(wer=mapping(_written, _amount), average_wer=_amount, rtfx=_amount)),
)  # fmt: skip
_REPORT = fields(
    host=_host,
    threads=integer(1, 100_000), repeats=integer(1, MOST), other_corpora=array(fields(**_section), 0, 1000), robustness_=_robustness,
    training_=mapping(_written, _curves), leaderboard_=_leaderboard, command_=_written, key_=_written, **_section,
)  # fmt: skip
_SCORES = fields(
    # a stream's clips are not counted, and a run may end without a validation
    teacher=fields(name=_written), corpus=fields(name=_written, clips=_maybe(_count), seconds=_maybe(_amount)), steps=_count, host=_host,
    seconds=fields(training=_amount, teacher_pass=_amount), validation=_maybe(fields(wer=_amount, cer=_amount)),
)  # fmt: skip
