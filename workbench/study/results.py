"""Compare the arms of a study with its baseline and with the teacher, over seeds and corpora."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from workbench.core.errors import UserError
from workbench.core.machine.host import describe_host
from workbench.evaluation.comparison import PairedHypotheses, difference_over_seeds, holm
from workbench.evaluation.scoring import headline, normalizers_of, score
from workbench.study.arm import teacher_scores
from workbench.study.current import read_results
from workbench.study.plan import Study, Trial

POOLED = "mean of the corpora"


def collect(study: Study, chosen: list[Trial], command: str) -> dict[str, Any]:
    """Compare every arm with the baseline on the same clips and seeds, as far as their runs are done.

    Rates are recomputed from the transcripts, so that all arms are scored alike whenever they ran. Intervals and p-values are those of
    `difference_over_seeds`; p-values are adjusted by Holm over the arms that are compared with one baseline on one corpus.

    Raises:
        UserError: no run is done yet.
    """
    found = {trial: _scored_anew(result, study.split) for trial, result in read_results(study, chosen).items()}
    if not found:
        raise UserError(f"{study.output}: no run of the study is done yet")
    arms = []
    for student, corpus in dict.fromkeys((c.student, c.corpus) for c in found):
        base = _of(found, student, corpus, study.baseline)
        for arm in study.arms:
            own = _of(found, student, corpus, arm)
            if own:
                arms.append(_summary(study, arm, student, corpus, own, base))
    teachers = [{**said, **_rates(said)} for c in study.corpora if (said := teacher_scores(study, c)) is not None]
    for student in dict.fromkeys(c.student for c in found):
        for arm in study.arms:
            arms += _pooled(study, arm, student, found, sorted({c.seed for c in chosen}))
    _adjust(study, arms)
    hosts = {json.dumps(result["host"], sort_keys=True) for result in found.values()}
    return {
        "schema": 1,
        "split": study.split,
        "baseline": study.baseline,
        "teacher": [
            {key: t[key] for key in ("name", "corpus", "wer", "cer", "loops", "headline", "normalizers")}
            for t in teachers
        ],
        "arms": arms,
        "runs": f"{len(found)} of {len(chosen)}",
        "command": command,
        "host": json.loads(sorted(hosts)[0]) if len(hosts) == 1 else [json.loads(h) for h in sorted(hosts)],
        "collected_on": describe_host(),
    }


def _scored_anew(result: dict[str, Any], split: str) -> dict[str, Any]:
    return {**result, split: {**result[split], **_rates(result[split])}}


def _rates(found: dict[str, Any]) -> dict[str, Any]:
    """WER, CER and loops of kept transcripts under today's normalizers."""
    rates = score(found["references"], found["hypotheses"], languages_of(found))
    return {"wer": round(rates.wer, 3), "cer": round(rates.cer, 3), "loops": float(rates.loops),
            "headline": headline(languages_of(found)), "normalizers": normalizers_of(languages_of(found))}  # fmt: skip


def languages_of(found: dict[str, Any]) -> list[str]:
    """The language of each clip among kept transcripts; results of earlier versions hold one for all."""
    languages: list[str] = (
        found["languages"] if "languages" in found else [found["language"]] * len(found["references"])
    )
    return languages


def _adjust(study: Study, arms: list[dict[str, Any]]) -> None:
    """Add to each arm's comparison with the baseline the p-values adjusted for the number of arms compared there."""
    for student, corpus in dict.fromkeys((row["student"], row["corpus"]) for row in arms):
        group = [row[f"vs_{study.baseline}"] for row in arms
                 if (row["student"], row["corpus"]) == (student, corpus) and f"vs_{study.baseline}" in row]  # fmt: skip
        for unit in ("cer", "wer"):
            compared = [versus for versus in group if versus[f"p_{unit}"] is not None]
            for versus, p in zip(compared, holm([v[f"p_{unit}"] for v in compared]), strict=True):
                versus[f"p_holm_{unit}"] = p


def _of(found: dict[Trial, Any], student: str, corpus: str, arm: str) -> dict[int, Any]:
    return {c.seed: r for c, r in found.items() if (c.student, c.corpus, c.arm) == (student, corpus, arm)}


def _summary(
    study: Study, arm: str, student: str, corpus: str, own: dict[int, Any], base: dict[int, Any]
) -> dict[str, Any]:
    split = study.split
    seeds = sorted(own)
    row: dict[str, Any] = {
        "name": arm,
        "student": student,
        "corpus": corpus,
        "seeds": seeds,
        "wer": [own[s][split]["wer"] for s in seeds],
        "cer": [own[s][split]["cer"] for s in seeds],
        "loops": [own[s][split]["loops"] for s in seeds],
        "validation_wer": [own[s]["validation"]["wer"] for s in seeds],
        "validation_cer": [own[s]["validation"]["cer"] for s in seeds],
        "seconds": round(float(np.mean([own[s]["seconds"]["training"] for s in seeds])), 1),
        "look_ahead_seconds": round(float(np.mean([own[s]["seconds"]["look_ahead"] for s in seeds])), 1),
        "peak_mb": round(float(np.max([own[s]["peak_mb"] for s in seeds])), 1),
    }
    common = [s for s in seeds if s in base]
    if teacher_scores(study, corpus) is not None:
        row["vs_teacher"] = _versus([_against_teacher(study, corpus, own)])
    if arm != study.baseline and common:
        row[f"vs_{study.baseline}"] = {**_versus([_compared(own, base, common, split)]), "seeds": common}
    return row


def _pooled(study: Study, arm: str, student: str, found: dict[Trial, Any], seeds: list[int]) -> list[dict[str, Any]]:
    """An arm over all corpora of which these seeds are done, for it and for the baseline; none if that is fewer than two."""
    sides = []
    for corpus in study.corpora:
        own, base = (_of(found, student, corpus, name) for name in (arm, study.baseline))
        if set(own) == set(base) == set(seeds):
            sides.append((corpus, own, base))
    if len(sides) < 2:
        return []
    split = study.split

    def mean(key: str) -> list[float]:
        return [round(float(np.mean([own[s][split][key] for _, own, _ in sides])), 3) for s in seeds]

    row = {
        "name": arm,
        "student": student,
        "corpus": POOLED,
        "corpora": [corpus for corpus, _, _ in sides],
        "seeds": seeds,
        "wer": mean("wer"),
        "cer": mean("cer"),
        "loops": mean("loops"),
        "seconds": round(float(np.mean([own[s]["seconds"]["training"] for _, own, _ in sides for s in seeds])), 1),
        "peak_mb": round(float(np.max([own[s]["peak_mb"] for _, own, _ in sides for s in seeds])), 1),
    }
    if all(teacher_scores(study, corpus) is not None for corpus, _, _ in sides):
        row["vs_teacher"] = _versus([_against_teacher(study, corpus, own) for corpus, own, _ in sides])
    if arm != study.baseline:
        row[f"vs_{study.baseline}"] = _versus([_compared(own, base, seeds, split) for _, own, base in sides])
    return [row]


def _compared(own: dict[int, Any], base: dict[int, Any], seeds: list[int], split: str) -> PairedHypotheses:
    first = base[seeds[0]][split]
    ours, theirs = ([side[s][split]["hypotheses"] for s in seeds] for side in (own, base))
    return PairedHypotheses(first["references"], ours, theirs, languages_of(first))


def _against_teacher(study: Study, corpus: str, own: dict[int, Any]) -> PairedHypotheses:
    teacher = teacher_scores(study, corpus)
    assert teacher is not None  # noqa: S101  asked for only where it is
    ours = [own[s][study.split]["hypotheses"] for s in sorted(own)]
    return PairedHypotheses(teacher["references"], ours, [teacher["hypotheses"]] * len(ours), languages_of(teacher))


def _versus(corpora: list[PairedHypotheses]) -> dict[str, Any]:
    cer, wer = (difference_over_seeds(corpora, unit) for unit in ("cer", "wer"))
    return {
        "delta_cer": cer["points"],
        "interval": cer["ci"],
        "relative_cer": round(100 * cer["relative"], 2),
        "delta_wer": wer["points"],
        "interval_wer": wer["ci"],
        "p_cer": cer["p"],
        "p_wer": wer["p"],
        "seeds_compared": cer["seeds"],
    }
