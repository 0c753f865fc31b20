"""A measurement as tables: their heads and cells, and the terminal's."""

from __future__ import annotations

from collections.abc import Sequence

from export.edge.bundle.content import Difference
from export.measurement.content import LanguageScores, Report, Section, SystemRow
from export.measurement.leaderboard import print_leaderboard
from export.measurement.robustness import hallucination_rate
from workbench.core.tables import print_rows

TIMES = ("p50 ms", "p95 ms", "speed-up", "RTFx", "MB", "peak RSS MB", "load ms")


def columns(section: Section) -> tuple[str, ...]:
    """Column headers of a corpus's result table; the headline rate comes first: CER for languages written without spaces, else WER."""
    first, second = ("CER %", "WER %") if section["corpus"]["headline"] == "cer" else ("WER %", "CER %")
    folded = ("folded WER %",) if _folds(section) else ()
    return ("system", first, "95 % interval", "vs teacher", second, *folded, "S/D/I", "loops", *TIMES)


def _folds(section: Section) -> bool:
    """Whether folding diacritics changes any system's WER; otherwise the column would be redundant."""
    return any(system["wer_folded"] != system["wer"] for system in section["systems"])


def rows(section: Section) -> list[tuple[str, ...]]:
    """Cells of a corpus's result table, one row per system, in the order of `columns`."""
    first = section["corpus"]["headline"]
    second = "wer" if first == "cer" else "cer"
    out: list[tuple[str, ...]] = []
    for system in section["systems"]:
        difference = _difference(system, first)
        out.append(
            (
                system["name"],
                f"{_rate(system, first):.2f}",
                interval(system["cer_ci"] if first == "cer" else system["wer_ci"]),
                f"{difference['points']:+.2f} ({interval(difference['ci'], '+')})" if difference else "",
                f"{_rate(system, second):.2f}",
                *((f"{system['wer_folded']:.2f}",) if _folds(section) else ()),
                f"{system['substitutions']}/{system['deletions']}/{system['insertions']}",
                str(system["loops"]),
                f"{system['latency_ms']['p50']:.0f}",
                f"{system['latency_ms']['p95']:.0f}",
                f"{system['speedup']:.1f} x" if "speedup" in system else "1",
                f"{system['rtfx']:.1f}",
                f"{system['size_mb']:.0f}",
                f"{system['peak_rss_mb']:.0f}",
                f"{system['load_ms']:.0f}",
            )
        )
    return out


def _rate(found: SystemRow | LanguageScores, unit: str) -> float:
    return found["cer"] if unit == "cer" else found["wer"]


def _difference(system: SystemRow, unit: str) -> Difference | None:
    return system.get("cer_difference") if unit == "cer" else system.get("wer_difference")


def interval(bounds: Sequence[float] | None, sign: str = "") -> str:
    """A 95 % confidence interval as text; there is none for fewer than 20 clips."""
    return "too few clips" if bounds is None else f"{bounds[0]:{sign}.2f} to {bounds[1]:{sign}.2f}"


def sections(report: Report) -> list[tuple[str, Section]]:
    """Title and content of each corpus's section, the report's first corpus first."""
    titles = {
        True: "Held-out clips of a corpus that the students were trained on",
        False: "A corpus that the students were not trained on",
        None: "A corpus for which the bundles do not record whether the students were trained on it",
    }
    return [(titles[part["corpus"]["trained_on"]], part) for part in (report, *report["other_corpora"])]


def described(section: Section) -> str:
    """The clips of a section, in words."""
    corpus = section["corpus"]
    text = f"{corpus['name']}, {corpus['split']}: {corpus['clips']} clips, {corpus['seconds']:.0f} s"
    if corpus["not_scored"]:
        text += f" ({corpus['not_scored']} more are not scored: their references omit words)"
    return text


def normalizers(section: Section) -> str:
    """Names and versions of the normalizers applied before scoring a section."""
    return "normalizer: " + ", ".join(section["corpus"]["normalizers"].values())


def print_table(report: Report) -> None:
    """Print a result table for each corpus, and one for sounds without speech."""
    for title, section in sections(report):
        about = f"{title}: {described(section)}, {report['threads']} threads"
        print_rows(columns(section), rows(section), about, normalizers(section))
    if "leaderboard" in report:
        print_leaderboard(report["leaderboard"])
    if "robustness" in report:
        header, *body = robustness_rows(report)
        print_rows(header, body, "sounds without speech: clips on which text was written (words), loops")


def robustness_rows(report: Report) -> list[tuple[str, ...]]:
    """Cells of the table of sounds without speech, header first."""
    found = report["robustness"]
    kinds = found["sounds"]
    out = [
        ("system", *(f"{kind}, of {of['clips']}" for kind, of in kinds.items()), "hallucinated %", "one word, WER %")
    ]
    for name, row in found["systems"].items():
        cells = [
            f"{row[kind]['wrote']} ({row[kind]['words']})"
            + (f", {row[kind]['loops']} loops" if row[kind]["loops"] else "")
            for kind in kinds
        ]
        short = row["one word"]
        one = f"{short['wer']:.1f} of {short['clips']} clips" if short["clips"] else ""
        out.append((name, *cells, f"{hallucination_rate(row, kinds):.0f}", one))
    passed = [str(of["taken_for_speech"]) if "taken_for_speech" in of else "" for of in kinds.values()]
    return [*out, ("accepted by the speech detector", *passed, "", "")]


def of_language(code: str, systems: Sequence[SystemRow]) -> tuple[str, ...]:
    """A language's row: its clips, the name of its headline rate, and each system's value."""
    found = [system["by_language"][code] for system in systems]
    rate = found[0]["headline"]
    return (code, str(found[0]["clips"]), f"{rate.upper()} %", *(f"{_rate(f, rate):.2f}" for f in found))
