"""Compare the arms of a study with each other and with the teacher, over seeds, corpora and languages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from workbench.core.errors import UserError
from workbench.core.machine.host import describe_host
from workbench.evaluation.comparison import PairedHypotheses, difference_over_seeds, holm
from workbench.evaluation.scoring import clip_errors, headline, normalizers_of, score
from workbench.study.arm import teacher_scores
from workbench.study.current import read_results
from workbench.study.plan import Study, Trial

POOLED = "mean of the corpora"
ALL = "all"  # the group of all clips
UNFINISHED = "not all seeds yet"  # what a primary contrast shows before all of its runs are done
Results = Mapping[Trial, Mapping[str, Any]]
BySeed = dict[int, Any]


def collect(study: Study, chosen: list[Trial], command: str) -> dict[str, Any]:
    """Compare the arms on the same clips and seeds, as far as their runs are done; see `compare`.

    Raises:
        UserError: no run is done yet.
    """
    found = read_results(study, chosen)
    corpora = [*study.corpora, *study.test_also]
    teachers = {c: said for c in corpora if (said := teacher_scores(study, c)) is not None}
    return compare(study, found, teachers, f"{len(found)} of {len(chosen)}", command)


def compare(
    study: Study, found: Results, teachers: Mapping[str, Mapping[str, Any]], runs: str, command: str
) -> dict[str, Any]:
    """Compare every arm with the baseline, with the arms that the study names for it, and with the teacher.

    Rates are recomputed from the transcripts, so that all arms are scored alike whenever they ran. Intervals and p-values are those of
    `difference_over_seeds`; p-values are adjusted by Holm over the arms that are compared with one other arm on one corpus and group, and those
    of the study's primary contrasts over these alone.

    Args:
        study: the study.
        found: what its runs wrote (result.json), or as much as is kept of it with the transcripts.
        teachers: the teacher's transcripts of each corpus.
        runs: how many of the study's runs these are, for the reader.
        command: what made them, for the reader.

    Raises:
        UserError: there is no run.
    """
    if not found:
        raise UserError(f"{study.output}: no run of the study is done yet")
    table = StudyTable(study, found, teachers)
    arms = table.rows()
    for other in study.test_also:
        arms += StudyTable(study, tested_on(other, found, study.split), teachers).rows()
    seeds = sorted({c.seed for c in found})
    for student in dict.fromkeys(c.student for c in found):
        for arm in study.arms:
            done = [c for c in study.corpora if all(set(table.of(student, c, a)) == set(seeds) for a in (arm, study.baseline))]  # fmt: skip
            if len(done) > 1 and not table.share_clips(student, done):
                arms.append(table.row(arm, student, done, ALL))
    _adjust(study, arms)
    hosts = {json.dumps(result["host"], sort_keys=True) for result in found.values()}
    out = {
        "schema": 1,
        "split": study.split,
        "baseline": study.baseline,
        "average_over": study.average_over,
        "teacher": [
            table.teacher_row(corpus, group)
            for corpus, said in teachers.items()
            for group in (ALL, *study.groups)
            if table.clips(languages_of(said), group)
        ],
        "arms": arms,
        "runs": runs,
        "command": command,
        "host": json.loads(sorted(hosts)[0]) if len(hosts) == 1 else [json.loads(h) for h in sorted(hosts)],
        "collected_on": describe_host(),
    }
    return out | ({"primary": _primary(study, arms), "margin": study.margin} if study.primary else {})


def tested_on(other: str, found: Results, split: str) -> dict[Trial, dict[str, Any]]:
    """Results on a corpus that no run trained on. Runs on all corpora are its seeds there, numbered from 1: they are scored on the same clips."""
    runs = sorted({(c.corpus, c.seed) for c in found})
    return {
        replace(c, corpus=other, seed=1 + runs.index((c.corpus, c.seed))): {**result, split: result["test_also"][other]}
        for c, result in found.items()
        if other in result.get("test_also", {})
    }


class StudyTable:
    """Rows of a study's table, from the transcripts."""

    def __init__(self, study: Study, found: Results, teachers: Mapping[str, Mapping[str, Any]]) -> None:
        self.study, self.found, self.teachers = study, found, teachers

    def rows(self) -> list[dict[str, Any]]:
        """Every arm on every corpus, over all clips and in each group of languages."""
        return [
            self.row(arm, student, [corpus], group)
            for student, corpus in dict.fromkeys((c.student, c.corpus) for c in self.found)
            for group in (ALL, *self.study.groups)
            for arm in self.study.arms
            if (own := self.of(student, corpus, arm))
            and self.clips(languages_of(next(iter(own.values()))[self.study.split]), group)
        ]

    def share_clips(self, student: str, corpora: Sequence[str]) -> bool:
        """Whether corpora are scored on some of the same clips, as with right and with wrong labels: their mean would count these several times."""
        seen: set[tuple[str, str]] = set()
        for corpus in corpora:
            said = next(r for c, r in self.found.items() if (c.student, c.corpus) == (student, corpus))[
                self.study.split
            ]
            clips = set(zip(said["ids"], said["references"], strict=True))
            if clips & seen:
                return True
            seen |= clips
        return False

    def of(self, student: str, corpus: str, arm: str) -> BySeed:
        """Results of an arm by seed."""
        return {c.seed: r for c, r in self.found.items() if (c.student, c.corpus, c.arm) == (student, corpus, arm)}

    def row(self, arm: str, student: str, corpora: list[str], group: str) -> dict[str, Any]:
        """An arm on a corpus, or on the mean of several."""
        study, split = self.study, self.study.split
        sides = [self.of(student, corpus, arm) for corpus in corpora]
        seeds = sorted(sides[0])
        runs = [own[s] for own in sides for s in seeds]
        row: dict[str, Any] = {
            "name": arm,
            "student": student,
            "corpus": POOLED if len(corpora) > 1 else corpora[0],
            **({"corpora": corpora} if len(corpora) > 1 else {}),
            "group": group,
            "seeds": seeds,
        }
        rates = [[self.group_rates(own[s][split], group) for own in sides] for s in seeds]
        for key in ("wer", "cer", "loops", *(["cer_capped"] if study.cap_errors else [])):
            row[key] = [round(float(np.mean([side[key] for side in sides])), 3) for sides in rates]
        if len(corpora) == 1:
            for key in ("wer", "cer"):
                row[f"validation_{key}"] = [r["validation"][key] for r in runs]
        row["seconds"] = round(float(np.mean([r["seconds"]["training"] for r in runs])), 1)
        row["look_ahead_seconds"] = round(float(np.mean([r["seconds"]["look_ahead"] for r in runs])), 1)
        row["peak_mb"] = round(float(np.max([r["peak_mb"] for r in runs])), 1)
        if all(corpus in self.teachers for corpus in corpora):
            versus = [self.paired(self.teachers[c], own, seeds, None) for c, own in zip(corpora, sides, strict=True)]
            row["vs_teacher"] = self.versus(versus, group)
        for other in study.compared_with(arm):
            theirs = [self.of(student, corpus, other) for corpus in corpora]
            common = [s for s in seeds if all(s in side for side in theirs)]
            if common:
                pairs = [self.paired(b[common[0]][split], own, common, b) for own, b in zip(sides, theirs, strict=True)]
                row[f"vs_{other}"] = {**self.versus(pairs, group), "seeds": common}
        return row

    def teacher_row(self, corpus: str, group: str) -> dict[str, Any]:
        """The teacher on a corpus."""
        said = self.teachers[corpus]
        return {"name": said["name"], "corpus": corpus, "group": group, **self.group_rates(said, group)}

    def group_rates(self, said: Mapping[str, Any], group: str) -> dict[str, Any]:
        """The `rates` of a group of languages."""
        return self.rates(said, self.clips(languages_of(said), group))

    def rates(self, said: Mapping[str, Any], clips: Sequence[int]) -> dict[str, Any]:
        """WER, CER and loops of some kept transcripts, by number, under today's normalizers."""
        languages = languages_of(said)
        by_language = [
            [i for i in clips if languages[i] == code] for code in dict.fromkeys(languages[i] for i in clips)
        ]
        parts = by_language if self.study.average_over == "languages" else [clips]
        scores = [
            score(
                [said["references"][i] for i in part],
                [said["hypotheses"][i] for i in part],
                [languages[i] for i in part],
            )
            for part in parts
        ]
        kept = [languages[i] for i in clips]
        return {
            "wer": round(float(np.mean([s.wer for s in scores])), 3),
            "cer": round(float(np.mean([s.cer for s in scores])), 3),
            "loops": float(sum(s.loops for s in scores)),
            **(
                {"cer_capped": round(float(np.mean([self._capped(said, part) for part in parts])), 3)}
                if self.study.cap_errors
                else {}
            ),
            "headline": headline(kept),
            "normalizers": normalizers_of(kept),
        }

    def _capped(self, said: Mapping[str, Any], part: Sequence[int]) -> float:
        """CER in percent of some clips, none of them above 100."""
        languages = languages_of(said)
        errors = [clip_errors(said["references"][i], said["hypotheses"][i], languages[i], "cer") for i in part]
        return 100.0 * sum(e.capped for e in errors) / max(sum(e.length for e in errors), 1)

    def clips(self, languages: Sequence[str], group: str) -> list[int]:
        """Numbers of a group's clips."""
        wanted = self.study.groups.get(group)
        return [i for i, code in enumerate(languages) if wanted is None or code in wanted]

    def paired(self, first: Mapping[str, Any], own: BySeed, seeds: list[int], base: BySeed | None) -> PairedHypotheses:
        """An arm's transcripts beside another's of the same seeds, or beside those of the teacher."""
        split = self.study.split
        ours = [own[s][split]["hypotheses"] for s in seeds]
        theirs = [first["hypotheses"]] * len(seeds) if base is None else [base[s][split]["hypotheses"] for s in seeds]
        speakers = first.get("speakers")
        known = speakers if speakers and all(speakers) else None
        return PairedHypotheses(first["references"], ours, theirs, languages_of(first), known, self.study.cap_errors)

    def versus(self, corpora: list[PairedHypotheses], group: str) -> dict[str, Any]:
        """The difference between two systems in CER and WER."""
        parts = [c.only(self.clips(c.language, group)) for c in corpora]
        if self.study.average_over == "languages":
            parts = [language for part in parts for language in part.by_language()]
        cer, wer = (difference_over_seeds(parts, unit) for unit in ("cer", "wer"))
        whole = {}
        if self.study.cap_errors:
            uncapped = difference_over_seeds([replace(part, capped=False) for part in parts], "cer")
            whole = {"delta_cer_uncapped": uncapped["points"], "interval_uncapped": uncapped["ci"]}
        return {
            **whole,
            "delta_cer": cer["points"],
            "interval": cer["ci"],
            "interval_90": cer["ci_90"],
            "relative_cer": round(100 * cer["relative"], 2),
            "delta_wer": wer["points"],
            "interval_wer": wer["ci"],
            "p_cer": cer["p"],
            "p_wer": wer["p"],
            "seeds_compared": cer["seeds"],
        }


def languages_of(found: Mapping[str, Any]) -> list[str]:
    """The language of each clip among kept transcripts; results of earlier versions hold one for all."""
    languages: list[str] = (
        found["languages"] if "languages" in found else [found["language"]] * len(found["references"])
    )
    return languages


def _adjust(study: Study, arms: list[dict[str, Any]]) -> None:
    """Add to each comparison with an arm the p-values adjusted for the number of arms that are compared with it there."""
    for place in dict.fromkeys((row["student"], row["corpus"], row["group"]) for row in arms):
        rows = [row for row in arms if (row["student"], row["corpus"], row["group"]) == place]
        for other in study.arms:
            compared = [row[f"vs_{other}"] for row in rows if f"vs_{other}" in row]
            for unit in ("cer", "wer"):
                known = [versus for versus in compared if versus[f"p_{unit}"] is not None]
                for versus, p in zip(known, holm([v[f"p_{unit}"] for v in known]), strict=True):
                    versus[f"p_holm_{unit}"] = p


def _primary(study: Study, arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The primary contrasts that can be computed yet, with their own adjustment and what each of them shows."""
    found = []
    for contrast in study.primary:
        for row in arms:
            versus = row.get(f"vs_{contrast.against}")
            if (row["name"], row["corpus"], row["group"]) == (contrast.arm, contrast.corpus, ALL) and versus:
                found.append({**contrast.model_dump(), "student": row["student"], **versus})
    for student in dict.fromkeys(row["student"] for row in found):
        rows = [row for row in found if row["student"] == student and row["p_cer"] is not None]
        # adjusted for all contrasts of the study, so that an early table does not flatter
        missing = len(study.primary) - len(rows)
        for row, p in zip(rows, holm([row["p_cer"] for row in rows] + [1.0] * missing), strict=False):
            row["p_holm_cer"] = p
            row["shows"] = verdict(row, study.margin) if set(row["seeds"]) == set(study.seeds) else UNFINISHED
    return found


def verdict(versus: Mapping[str, Any], margin: float | None) -> str:
    """What a comparison shows: `gain`, `no gain` or `undecided`.

    A gain is an adjusted p-value below 0.05 with the interval below zero. No gain is a difference against the arm that is shown likewise or, where there is a margin of
    equivalence, a 90 % interval within it. With one seed, whose interval covers the clips alone, everything is undecided.
    """
    if versus["seeds_compared"] < 2:
        return "undecided"
    low, high = versus["interval"]
    if versus["p_holm_cer"] < 0.05 and (high < 0 or low > 0):
        return "gain" if high < 0 else "no gain"
    inside = margin is not None and -margin < versus["interval_90"][0] and versus["interval_90"][1] < margin
    return "no gain" if inside else "undecided"
