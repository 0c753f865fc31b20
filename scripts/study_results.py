"""Compute every published figure of a study from its kept transcripts: the table, the primary contrasts, gain by language, and two plots.

    python scripts/study_results.py d/study docs/results/studies/d/*.hypotheses.jsonl.gz \
        --output docs/results/study_d.json --plots docs/results/studies/d

Nothing is trained or transcribed. Several files of one study, made in several sessions, are read as one.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import UserError, install_one_line_excepthook, output_file
from workbench.core.files import write_json
from workbench.evaluation.comparison import difference_over_seeds, mean_over_folds
from workbench.study.plan import Study, Trial, load_study, trials
from workbench.study.report import print_table, read_kept, shown_cer
from workbench.study.results import StudyTable, compare, languages_of

PROTOCOL = "docs/studies/protocol.md"
RESAMPLES = 2000
FEWEST_LANGUAGES = 5  # with fewer, a rank correlation says nothing
ADAPTIVE = ("adakd", "askd", "almkd")  # arms whose gain by language is plotted


def main() -> None:
    """Read the transcripts, write the JSON file and the plots, print the table."""
    install_one_line_excepthook()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the study's file")
    parser.add_argument("kept", type=Path, nargs="+", help="its hypotheses.jsonl.gz, one or several")
    parser.add_argument("--output", type=output_file, required=True, help="JSON file to write")
    parser.add_argument("--plots", type=Path, help="folder to write the plots to")
    given = parser.parse_args()
    study = load_study(given.study)
    published, table = results(study, given.study, given.kept)
    write_json(given.output, published)
    print_table(study, table)
    if given.plots:
        given.plots.mkdir(parents=True, exist_ok=True)
        if published["hypothesis_4"] and any(row["arm"] in ADAPTIVE for row in published["by_language"]):
            plot_languages(published["by_language"], given.plots / "gain_by_language.svg")
        plot_wrong_labels(study, published["arms"], given.plots / "wrong_labels.svg")


def results(study: Study, file: Path, kept: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is published of a study, and its table, from its kept transcripts.

    Raises:
        UserError: the teacher's transcripts are missing.
    """
    found, teachers = read_kept(kept)
    chosen = trials(study)
    command = f"workbench study {Path(*file.parts[-4:])}"
    if missing := sorted({trial.corpus for trial in found} - set(teachers)):
        raise UserError(
            f"{kept[-1]}: has no transcripts of the teacher for {', '.join(missing)}; run the study's command to its end"
        )
    table = compare(study, found, teachers, f"{len(found)} of {len(chosen)}", command)
    languages = by_language(StudyTable(study, found, teachers))
    published = {
        "schema": 1,
        "protocol_commit": protocol_commit(),
        "command": command,
        "host": table["host"],
        "runs": len(found),
        "margin": study.margin,
        "primary": [{**row, "detectable": detectable(row)} for row in table.get("primary", [])],
        "primary_runs_missing": [trial.name for trial in chosen if trial not in found and is_primary(study, trial)],
        "hypothesis_4": correlations(languages),
        "arms": [published_row(study, row) for row in table["arms"]],
        "over_folds": over_folds(study, table["arms"]),
        "teacher": table["teacher"],
        "by_language": languages,
    }
    return published, table


def over_folds(study: Study, arms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each arm's mean over the corpora of a study with one seed, and its differences to other arms, paired by corpus.

    The others are the baseline, the best constant weight and those that the study compares it with. An arm's corpora are those that it has run on. The best constant weight is the one with the lowest mean, of those that have run on most.
    """
    if len(study.seeds) > 1 or len(study.corpora) == 1:
        return []
    found: dict[str, dict[str, float]] = {arm: {} for arm in study.arms}
    for row in arms:
        if row["group"] == "all" and row["corpus"] in study.corpora:
            found[row["name"]][row["corpus"]] = row["cer_capped"][0]
    found = {arm: values for arm, values in found.items() if values}
    constant = [arm for arm in found if is_constant(study.arms[arm])]
    best = min(constant, key=lambda arm: (-len(found[arm]), float(np.mean(list(found[arm].values())))), default="")
    rows = []
    for arm, values in found.items():
        folds = [corpus for corpus in study.corpora if corpus in values]
        cer = [values[fold] for fold in folds]
        row: dict[str, Any] = {"arm": arm, "folds": folds, "cer_capped": cer, "mean": round(float(np.mean(cer)), 3)}
        others = {
            "baseline": study.baseline,
            "best_constant": best,
            **{name: name for name in study.comparisons.get(arm, [])},
        }
        for name, other in others.items():
            shared = [fold for fold in folds if fold in found.get(other, {})]
            if shared and other != arm:
                points, interval = mean_over_folds([values[fold] - found[other][fold] for fold in shared])
                row[f"vs_{name}"] = {"arm": other, "folds": len(shared), "delta_cer": points, "interval": interval}
        rows.append(row)
    return rows


def is_constant(changes: Mapping[str, object]) -> bool:
    """Whether an arm is a constant weight and nothing else."""
    (weighting, *others) = changes.values()
    return not others and isinstance(weighting, Mapping) and weighting.get("name") == "fixed"


def is_primary(study: Study, trial: Trial) -> bool:
    """Whether a primary contrast needs this run."""
    return any(trial.corpus == c.corpus and trial.arm in (c.arm, c.against) for c in study.primary)


def detectable(row: Mapping[str, Any]) -> float | None:
    """The difference, in points, that would be found with 80 % power: 2.8 standard errors, where the interval's half is about 1.96 of them."""
    if row["interval"] is None:
        return None
    return round((row["interval"][1] - row["interval"][0]) / 2 * 2.8 / 1.96, 2)


def protocol_commit() -> str:
    """The last commit that changed the protocol."""
    found = subprocess.run(
        ["git", "log", "-1", "--format=%H", "--", PROTOCOL], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def published_row(study: Study, row: dict[str, Any]) -> dict[str, Any]:
    """An arm's row under the names that results are published with: each comparison with CER, interval and adjusted p-value."""
    out = {
        key: row[key]
        for key in ("name", "corpus", "group", "seeds", "wer", "cer", "cer_capped", "loops", "seconds")
        if key in row
    }
    for other in [*study.compared_with(row["name"]), "teacher"]:
        if (versus := row.get(f"vs_{other}")) is not None:
            name = "permuted" if other == f"{row['name']}_permuted" else other
            kept = {
                key: versus[key]
                for key in (
                    "delta_cer",
                    "interval",
                    "interval_90",
                    "delta_cer_uncapped",
                    "interval_uncapped",
                    "delta_wer",
                    "interval_wer",
                )
                if key in versus
            }
            out[f"vs_{name}"] = {**kept, "p_holm": versus.get("p_holm_cer"), "seeds": versus["seeds_compared"]}
    return out


def by_language(table: StudyTable) -> list[dict[str, Any]]:
    """Each arm against the baseline in each language, with the teacher's own CER there. A language has few clips: no claim rests on one."""
    study, rows = table.study, []
    for student, corpus in dict.fromkeys((c.student, c.corpus) for c in table.found):
        base, said = table.of(student, corpus, study.baseline), table.teachers[corpus]
        codes = languages_of(said)
        clips = {code: [i for i, c in enumerate(codes) if c == code] for code in dict.fromkeys(codes)}
        teacher = {code: shown_cer(table.rates(said, those)) for code, those in clips.items()}
        for arm in study.arms:
            own = table.of(student, corpus, arm)
            seeds = sorted(set(own) & set(base))
            if arm == study.baseline or not seeds:
                continue
            whole = table.paired(base[seeds[0]][study.split], own, seeds, base)
            for code, those in clips.items():
                versus = difference_over_seeds([whole.only(those)], "cer", fewest_clips=2)
                rows.append(
                    {"student": student, "corpus": corpus, "arm": arm, "language": code,
                     "group": next((name for name, members in study.groups.items() if code in members), None),
                     "clips": len(those), "teacher_cer": teacher[code], "delta_cer": versus["points"], "interval": versus["ci"],
                     "seeds": len(seeds)}
                )  # fmt: skip
    return rows


def correlations(languages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rank correlation over languages of an arm's gain (the baseline's CER minus its own) with the teacher's CER, bootstrapped over languages.

    A corpus of fewer than five languages has none.
    """
    from scipy.stats import spearmanr

    out = []
    for student, corpus, arm in dict.fromkeys((row["student"], row["corpus"], row["arm"]) for row in languages):
        rows = [row for row in languages if (row["student"], row["corpus"], row["arm"]) == (student, corpus, arm)]
        if len(rows) < FEWEST_LANGUAGES:
            continue
        gain, teacher = np.array([-row["delta_cer"] for row in rows]), np.array([row["teacher_cer"] for row in rows])
        generator = np.random.default_rng(0)
        drawn = generator.integers(0, len(rows), (RESAMPLES, len(rows)))
        resampled = [
            float(spearmanr(gain[d], teacher[d]).statistic) for d in drawn if np.ptp(gain[d]) and np.ptp(teacher[d])
        ]
        low, high = np.percentile(resampled, [2.5, 97.5]) if resampled else (np.nan, np.nan)
        found = float(spearmanr(gain, teacher).statistic)
        out.append({"student": student, "corpus": corpus, "arm": arm, "languages": len(rows), "spearman": round(found, 3),
                    "interval": [round(float(low), 3), round(float(high), 3)]})  # fmt: skip
    return out


def plot_languages(languages: list[dict[str, Any]], path: Path) -> None:
    """Gain against the teacher's own CER, one point a language with its interval, for each adaptive arm on the first corpus."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "study", "svg.fonttype": "none"})  # the same file for the same figures
    corpus = languages[0]["corpus"]
    arms = [arm for arm in ADAPTIVE if any((row["arm"], row["corpus"]) == (arm, corpus) for row in languages)]
    figure, axes = plt.subplots(1, len(arms), figsize=(4.6 * len(arms), 4.2), sharey=True, squeeze=False)
    colours = {"strong": "#2a7f62", "middle": "#7a9cc6", "weak": "#b5523b"}
    for axis, arm in zip(axes[0], arms, strict=True):
        for row in languages:
            if (row["corpus"], row["arm"]) != (corpus, arm):
                continue
            gain, colour = -row["delta_cer"], colours.get(row["group"], "#555555")
            low, high = row["interval"] or (row["delta_cer"], row["delta_cer"])
            axis.errorbar(
                row["teacher_cer"],
                gain,
                [[max(0, gain + high)], [max(0, -low - gain)]],
                fmt="o",
                ms=4,
                lw=0.8,
                color=colour,
            )
            axis.annotate(
                row["language"], (row["teacher_cer"], gain), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
        axis.axhline(0, color="black", lw=0.8)
        axis.set_title(arm)
        axis.set_xlabel("teacher's CER, %")
    marks = [
        plt.Line2D([], [], marker="o", ls="", color=colour, label=f"{name} teacher") for name, colour in colours.items()
    ]
    axes[0][-1].legend(handles=marks, fontsize=7)
    axes[0][0].set_ylabel("gain over the best constant weight, points of CER")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def plot_wrong_labels(study: Study, arms: list[dict[str, Any]], path: Path) -> None:
    """CER minus the baseline's on each corpus, in the study's order: the dose of wrong labels and the response."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2))
    names = [arm for arm in study.arms if arm != study.baseline]
    for number, arm in enumerate(names):
        rows = {row["corpus"]: row for row in arms if (row["name"], row["group"]) == (arm, "all")}
        shown = [
            (i, rows[c][f"vs_{study.baseline}"])
            for i, c in enumerate(study.corpora)
            if f"vs_{study.baseline}" in rows.get(c, {})
        ]
        if not shown:
            continue
        places = [i + (number - len(names) / 2) * 0.05 for i, _ in shown]
        values = [v["delta_cer"] for _, v in shown]
        bars = [
            [v["delta_cer"] - v["interval"][0] for _, v in shown],
            [v["interval"][1] - v["delta_cer"] for _, v in shown],
        ]
        axis.errorbar(places, values, bars, fmt="o-", ms=4, lw=0.8, label=arm)
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xticks(range(len(study.corpora)), [Path(c).name for c in study.corpora])
    axis.set_ylabel(f"CER minus {study.baseline}'s, points")
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
