"""Score the kept transcripts of every published result against the corrected references.

    python scripts/rescore.py                 # writes docs/results/studies/rescored.json, prints the tables

Nothing is trained or transcribed: hypotheses come from docs/results, references from there with the corrections of
workbench/corpus/corrections, and clips that are not scored are left out. No corpus has to be built.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import install_one_line_excepthook, output_file
from workbench.core.files import read_json, write_json
from workbench.corpus.references import CORRECTED, build_version, corrected, corrections, why_not_scored
from workbench.evaluation.comparison import PairedHypotheses, difference_over_seeds, holm
from workbench.evaluation.scoring import normalizers_of, score
from workbench.text.normalizers import fold, normalize

RESULTS = Path(__file__).parent.parent / "docs" / "results"
OUTPUT = RESULTS / "studies" / "rescored.json"
STUDIES = (
    "study_a",
    "study_b",
    "study_c",
    "studies/study_b_en",
    "studies/targets",
    "studies/others",
    "studies/rate",
    "studies/tune",
)
BASELINES = ("fixed_kd", "fine_tuning", "teacher")
ALIASES = {"rate_1e-4": "fixed_kd", "fixed_kd_0.5": "fixed_kd"}  # studies that choose a knob have no arm of that name
UNITS = ("wer", "wer_folded", "cer")
OLD_UNITS = ("wer", "cer")
LABELS = {"wer": "WER", "wer_folded": "folded WER", "cer": "CER"}
Run = dict[str, Any]


def main() -> None:
    """Rescore everything, write the JSON file and print the tables."""
    install_one_line_excepthook()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=output_file, default=OUTPUT)
    output = parser.parse_args().output
    groups = [group for name in STUDIES for group in rescored(name)]
    bundle = rescored_bundle("edge/spanish")
    recordings = rescored_recordings("labels/long_recordings")
    write_json(
        output,
        {
            "schema": 1,
            "command": "python scripts/rescore.py",
            "references": {code: build_version(code) for code in CORRECTED},
            "normalizers": normalizers_of(["en", *CORRECTED]),
            "groups": groups,
            "bundle": bundle,
            "long_recordings": recordings,
        },
    )
    for group in groups:
        print_group(group)
    print_bundle(bundle)
    print_recordings(recordings)


def language_of(corpus: str) -> str:
    """Language of a corpus named prompts-LANGUAGE, with or without a suffix."""
    return corpus.removeprefix("prompts-")[:2]


def corrected_run(row: Run) -> Run:
    """A kept run with corrected references, without the clips that are not scored.

    Kept references have lost their square brackets, for which a build marks clips as well; all of those are training clips.
    """
    language = language_of(row["corpus"])
    kept = []
    for name, text, hypothesis in zip(row["ids"], row["references"], row["hypotheses"], strict=True):
        reference = corrected(name, text, language)
        if not why_not_scored(reference, language):
            kept.append((name, reference, hypothesis))
    ids, references, hypotheses = (list(column) for column in zip(*kept, strict=True))
    return {
        **row,
        "ids": ids,
        "references": references,
        "hypotheses": hypotheses,
        "left_out": len(row["ids"]) - len(kept),
    }


def rescored(name: str) -> list[dict[str, Any]]:
    """A study's groups of arms that are compared: of one student on one corpus, and on the mean of its corpora."""
    lines = gzip.decompress((RESULTS / f"{name}.hypotheses.jsonl.gz").read_bytes()).decode().split("\n")
    runs = [corrected_run(json.loads(line)) for line in lines if line]
    teachers = {run["corpus"]: run for run in runs if "arm" not in run}
    published = read_json(RESULTS / f"{name}.json", "a study's results")
    by_arm: dict[tuple[str, str], dict[str, dict[int, Run]]] = {}
    for run in runs:
        if "arm" in run:
            group = by_arm.setdefault((run["student"], run["corpus"]), {})
            group.setdefault(run["arm"], {})[run["seed"]] = run
    groups = []
    for (student, corpus), arms in by_arm.items():
        if corpus in teachers:
            seeds = sorted({seed for found in arms.values() for seed in found})
            arms = {**arms, "teacher": dict.fromkeys(seeds, teachers[corpus])}
        groups.append(group_of(name, student, [corpus], [arms], published))
        if corpus.endswith("-corrupt40") and (clean := by_arm.get((student, corpus.removesuffix("-corrupt40")))):
            add_cost(groups[-1], arms, clean)
    for student in dict.fromkeys(student for student, _ in by_arm):
        sides = {corpus: arms for (of, corpus), arms in by_arm.items() if of == student and "corrupt" not in corpus}
        shared = set.intersection(*(set(arms) for arms in sides.values())) if sides else set()
        if len(sides) > 1 and len(next(iter(next(iter(sides.values())).values()))) > 1:
            together = [{arm: arms[arm] for arm in arms if arm in shared} for arms in sides.values()]
            groups.append(group_of(name, student, list(sides), together, published))
    return groups


def group_of(
    study: str,
    student: str,
    corpora: Sequence[str],
    sides: Sequence[dict[str, dict[int, Run]]],
    published: dict[str, Any],
) -> dict[str, Any]:
    """Rates of every arm over some corpora, and its differences to each baseline with Holm's p-values."""
    first = next(iter(next(iter(sides[0].values())).values()))
    rows = [
        {
            "name": arm,
            **rates([side[arm] for side in sides]),
            **old_rates(published, arm, student, corpora),
        }
        for arm in sides[0]
    ]
    for baseline in BASELINES:
        base = (
            baseline
            if baseline in sides[0]
            else next((a for a, b in ALIASES.items() if b == baseline and a in sides[0]), None)
        )
        if base is None:
            continue
        compared = [row for row in rows if row["name"] not in (base, "teacher")]
        for row in compared:
            row[f"vs_{baseline}"] = versus([(side[row["name"]], side[base]) for side in sides])
        for unit in UNITS:
            found = [row[f"vs_{baseline}"][unit] for row in compared if row[f"vs_{baseline}"][unit]["p"] is not None]
            for difference, p in zip(found, holm([f["p"] for f in found]), strict=True):
                difference["p"], difference["p_holm"] = round(difference["p"], 5), round(p, 5)
    return {
        "study": study, "student": student, "corpora": list(corpora), "split": published["split"],
        "clips": [len(next(iter(next(iter(side.values())).values()))["ids"]) for side in sides],
        "not_scored": [next(iter(next(iter(side.values())).values()))["left_out"] for side in sides],
        "seeds": sorted(sides[0][next(iter(sides[0]))]), "words": score(first["references"], first["references"], language_of(corpora[0])).words,
        "arms": rows,
    }  # fmt: skip


def rates(sides: Sequence[dict[int, Run]]) -> dict[str, Any]:
    """WER, folded WER and CER of each seed, the mean of the corpora."""
    seeds = sorted(set.intersection(*(set(side) for side in sides)))
    each = [
        [score(side[seed]["references"], side[seed]["hypotheses"], language_of(side[seed]["corpus"])) for side in sides]
        for seed in seeds
    ]
    return {key: [round(float(np.mean([getattr(s, key) for s in scores])), 3) for scores in each] for key in UNITS}


def old_rates(published: dict[str, Any], arm: str, student: str, corpora: Sequence[str]) -> dict[str, Any]:
    """What was published: mean WER and CER over the seeds, and the differences to the baseline."""
    corpus = corpora[0] if len(corpora) == 1 else "mean of the corpora"
    if arm == "teacher":
        found = [t for t in published["teacher"] if t["corpus"] in corpora]
        return (
            {"was": {unit: round(float(np.mean([t[unit] for t in found])), 3) for unit in OLD_UNITS}} if found else {}
        )
    row = next((a for a in published["arms"] if (a["name"], a["student"], a["corpus"]) == (arm, student, corpus)), None)
    if row is None:
        return {}
    was: dict[str, Any] = {unit: round(float(np.mean(row[unit])), 3) for unit in OLD_UNITS}
    for key in ("vs_fixed_kd", "vs_teacher"):
        if key in row:
            was[key] = {
                "wer": [row[key]["delta_wer"], *row[key]["interval_wer"]],
                "cer": [row[key]["delta_cer"], *row[key]["interval"]],
            }
    return {"was": was}


def versus(pairs: Sequence[tuple[dict[int, Run], dict[int, Run]]]) -> dict[str, Any]:
    """Difference of two arms over clips and the seeds that both have, each corpus counting alike."""
    seeds = sorted(set.intersection(*(set(ours) & set(theirs) for ours, theirs in pairs)))
    corpora = [
        PairedHypotheses(
            ours[seeds[0]]["references"],
            [ours[s]["hypotheses"] for s in seeds],
            [theirs[s]["hypotheses"] for s in seeds],
            language_of(ours[seeds[0]]["corpus"]),
        )
        for ours, theirs in pairs
    ]
    found = {
        unit: difference_over_seeds(
            [folded(c) for c in corpora] if unit == "wer_folded" else corpora, unit.removesuffix("_folded")
        )
        for unit in UNITS
    }
    return {unit: {**difference, "relative": round(difference["relative"], 4)} for unit, difference in found.items()}


def folded(corpus: PairedHypotheses) -> PairedHypotheses:
    """The same texts normalized and without diacritics, which a student that was trained without them cannot write."""
    code = str(corpus.language)

    def plain(texts: Sequence[str]) -> list[str]:
        return [fold(normalize(text, code)) for text in texts]

    return PairedHypotheses(
        plain(corpus.references), [plain(h) for h in corpus.ours], [plain(h) for h in corpus.theirs], code
    )


def add_cost(group: dict[str, Any], wrong: dict[str, dict[int, Run]], right: dict[str, dict[int, Run]]) -> None:
    """Add to each arm what wrong labels cost it: its rate with them minus its rate without."""
    rows = [row for row in group["arms"] if row["name"] in right]
    for row in rows:
        row["cost"] = versus([(wrong[row["name"]], right[row["name"]])])


def rescored_bundle(name: str) -> dict[str, Any]:
    """The systems of a `workbench measure` report, and each one's difference to the teacher over the clips."""
    report = read_json(RESULTS / f"{name}.json", "a report")
    names = [system["name"] for system in report["systems"]]
    base = {
        "corpus": report["corpus"]["name"],
        "ids": [c["id"] for c in report["clips"]],
        "references": [c["reference"] for c in report["clips"]],
    }
    runs = {n: corrected_run({**base, "hypotheses": [c["hypotheses"][n] for c in report["clips"]]}) for n in names}
    teacher = runs[names[0]]
    language = language_of(base["corpus"])
    systems = []
    for system in report["systems"]:
        run = runs[system["name"]]
        found = score(run["references"], run["hypotheses"], language).as_dict()
        row = {"name": system["name"], **{k: found[k] for k in ("wer", "wer_ci", "wer_folded", "cer", "cer_ci")}}
        row["was"] = {k: system[k] for k in ("wer", "cer")}
        if run is not teacher:
            row["vs_teacher"] = versus([({1: run}, {1: teacher})])
        systems.append(row)
    for unit in UNITS:
        found_p = [row["vs_teacher"][unit] for row in systems[1:]]
        for difference, p in zip(found_p, holm([f["p"] for f in found_p]), strict=True):
            difference["p"], difference["p_holm"] = round(difference["p"], 5), round(p, 5)
    return {"report": name, "clips": len(teacher["ids"]), "not_scored": teacher["left_out"], "systems": systems}


def rescored_recordings(name: str) -> list[dict[str, Any]]:
    """Long recordings: their references are joined texts, so every clip counts and both forms are scored as one text."""
    out = []
    for run in read_json(RESULTS / f"{name}.json", "results")["runs"]:
        language, reference = run["language"], run["reference"]
        rows = [row for clip, row in corrections(language).items() if clip in run["apart"]]
        for row in sorted(rows, key=lambda row: -len(row.was)):
            reference = reference.replace(row.was, row.now)
        apart = " ".join(run["apart"][clip] for clip in sorted(run["apart"]))
        new = {
            form: round(score([reference], [text], language).wer, 3)
            for form, text in (("cut", run["cut"]), ("clips", apart))
        }
        was = {"cut": round(run["wer_cut"], 3), "clips": round(run["wer_clips"], 3)}
        out.append({"language": language, "clips": run["clips"], **new, "was": was})
    return out


def signed(difference: dict[str, Any] | None) -> str:
    """A difference as "-4.4 (-9.2 to +0.4), p 0.06"; p is adjusted by Holm."""
    if difference is None:
        return ""
    if difference["ci"] is None:
        return f"{difference['points']:+.1f} (too few to say)"
    low, high = difference["ci"]
    p = difference.get("p_holm", difference["p"])
    return f"{difference['points']:+.1f} ({low:+.1f} to {high:+.1f}), p {p:.2g}"


def print_group(group: dict[str, Any]) -> None:
    """A Markdown table of a group's arms, best first."""
    seeds = len(group["seeds"])
    out(f"\n### {group['study']}: {group['student']}, {' and '.join(group['corpora'])}, {group['split']}, "
        f"{' + '.join(map(str, group['clips']))} clips ({' + '.join(map(str, group['not_scored']))} not scored), {seeds} seed{'s' * (seeds > 1)}\n")  # fmt: skip
    names = [b for b in BASELINES if any(f"vs_{b}" in row for row in group["arms"])]
    cost = any("cost" in row for row in group["arms"])
    heads = [f"{LABELS[unit]} against {b.replace('_', ' ')}" for b in names for unit in UNITS[1:]] + [
        "CER, cost of wrong labels"
    ] * cost
    out("| arm | WER %, old -> new | folded | CER %, old -> new | " + " | ".join(heads) + " |")
    out("|---" * (4 + len(heads)) + "|")
    for row in sorted(group["arms"], key=lambda row: float(np.mean(row["wer"]))):
        new = {key: float(np.mean(row[key])) for key in UNITS}
        was = {unit: f"{row['was'][unit]:.1f} -> " if "was" in row else "" for unit in OLD_UNITS}
        each = f" ({', '.join(f'{w:.1f}' for w in row['wer'])})" if row["name"] != "teacher" and seeds > 1 else ""
        cells = [signed(row.get(f"vs_{b}", {}).get(unit)) for b in names for unit in UNITS[1:]]
        cells += [signed(row["cost"]["cer"]) if "cost" in row else ""] * cost
        out(f"| {row['name']} | {was['wer']}{new['wer']:.1f}{each} | {new['wer_folded']:.1f} | {was['cer']}{new['cer']:.1f} | " + " | ".join(cells) + " |")  # fmt: skip


def print_bundle(bundle: dict[str, Any]) -> None:
    """A Markdown table of a report's systems."""
    out(f"\n### {bundle['report']}: {bundle['clips']} clips ({bundle['not_scored']} not scored)\n")
    out(
        "| system | WER %, old -> new (95 %) | folded | CER %, old -> new | WER against the teacher | folded WER | CER |"
    )
    out("|---|---|---|---|---|---|---|")
    for row in bundle["systems"]:
        versus_teacher = [signed(row.get("vs_teacher", {}).get(unit)) for unit in UNITS]
        low, high = row["wer_ci"]
        out(f"| {row['name']} | {row['was']['wer']:.1f} -> {row['wer']:.1f} ({low:.1f} to {high:.1f}) | {row['wer_folded']:.1f} | "
            f"{row['was']['cer']:.1f} -> {row['cer']:.1f} | {' | '.join(versus_teacher)} |")  # fmt: skip


def print_recordings(rows: Sequence[dict[str, Any]]) -> None:
    """A Markdown table of the long recordings."""
    out(
        "\n### labels/long_recordings\n\n| language | cut: WER %, old -> new | clips apart: WER %, old -> new |\n|---|---|---|"
    )
    for row in rows:
        out(
            f"| {row['language']} | {row['was']['cut']:.1f} -> {row['cut']:.1f} | {row['was']['clips']:.1f} -> {row['clips']:.1f} |"
        )


def out(line: str) -> None:
    """Print a line: the tables are this script's output."""
    print(line)


if __name__ == "__main__":
    main()
