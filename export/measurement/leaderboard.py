"""The Open ASR Leaderboard's protocol for English short-form speech, computed from a measurement's report.

It is the protocol of the paper (arXiv 2510.06961) and of https://github.com/huggingface/open_asr_leaderboard until February 2026 (commit
7e93d54): eight test sets, Whisper's English normalizer on references and transcripts, references left out that are empty after it, word
errors over words of each set in percent with two decimals, their plain mean over the sets, and RTFx as all sets' seconds of audio over
seconds of inference. Later in 2026 the leaderboard cleaned four sets, dropped TED-LIUM, lengthened its normalizer with word lists of its own
and counts compounds as one word; numbers of that protocol are others, and are not computed here.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Callable, Mapping

from export.measurement.content import Clip, Leaderboard, LeaderboardRow, Report
from export.measurement.latency import total_ms
from workbench.core.errors import UserError, did_you_mean
from workbench.core.tables import print_rows
from workbench.evaluation.scoring import word_errors
from workbench.text.normalizers import spelling_table

NAME, VERSION = "open-asr-leaderboard", "2025"
SOURCE = "https://github.com/huggingface/open_asr_leaderboard/tree/7e93d5497269ea73fc59428bfdd58aea98f55f48"
# the leaderboard's name of each set, in its order, and the corpus
SETS = {
    "AMI": "open-asr-leaderboard:ami",
    "Earnings22": "open-asr-leaderboard:earnings22",
    "Gigaspeech": "open-asr-leaderboard:gigaspeech",
    "LS Clean": "open-asr-leaderboard:librispeech-clean",
    "LS Other": "open-asr-leaderboard:librispeech-other",
    "SPGISpeech": "open-asr-leaderboard:spgispeech",
    "Tedlium": "open-asr-leaderboard:tedlium",
    "Voxpopuli": "open-asr-leaderboard:voxpopuli",
}
IGNORED = "ignore time segment in scoring"  # a reference, normalized
DIFFERS = (
    "The leaderboard of 2025 timed PyTorch in bfloat16 in batches on an NVIDIA A100 of 80 GB: RTFx here is of this machine and cannot be compared with it.",
    "The runtime's speech detector is on, and gives no text for clips in which it finds no speech.",
    "Whisper's spelling table is whisper-normalizer's, which has other entries for some ten words (archaeology, cancellation, travelogues, ...).",
    "TED-LIUM is read from distil-whisper/tedlium, the other sets from hf-audio/open-asr-leaderboard, which is what hf-audio/esb-datasets-test-only-sorted became.",
    "It is not the leaderboard's protocol of 2026, which has cleaned sets, no TED-LIUM, a longer normalizer, and counts compounds as one word.",
)


def preset_corpora(preset: str) -> list[str]:
    """The corpora of a preset, in its order; raises UserError for an unknown one."""
    if preset != NAME:
        raise UserError(f"--preset {preset!r}{did_you_mean(preset, [NAME])}")
    return list(SETS.values())


def scored_by_leaderboard(report: Report, limit: int | None) -> Leaderboard:
    """Every system's scores by the protocol.

    Args:
        report: a measurement of the preset's corpora.
        limit: at most how many clips of each set were measured, if not all.
    """
    found = {part["corpus"]["name"]: part for part in (report, *report["other_corpora"])}
    parts = {name: [c for c in found[corpus]["clips"] if _scored(c)] for name, corpus in SETS.items()}
    every = [clip for clips in parts.values() for clip in clips]
    if not every:
        raise UserError("--preset: none of the clips is scored by the leaderboard; measure more of each set (--clips)")
    differs = [f"{_machine(report)}, one clip at a time, ONNX in the precision that is named.", *DIFFERS]
    if limit is not None:
        if empty := [name for name, clips in parts.items() if not clips]:
            differs.insert(0, f"Without {', '.join(empty)}, of which no measured clip is scored.")
        differs.insert(0, f"Only the first {limit} clips of each set were measured (--clips).")
    return {
        "preset": NAME,
        "version": VERSION,
        "source": SOURCE,
        "normalizer": f"EnglishTextNormalizer transformers/{importlib.metadata.version('transformers')}",
        "clips": {name: len(clips) for name, clips in parts.items()},
        "not_scored": {name: len(found[SETS[name]]["clips"]) - len(clips) for name, clips in parts.items()},
        "systems": {system["name"]: _row(system["name"], parts, every) for system in report["systems"]},
        "differs": differs,
    }


def _row(system: str, parts: Mapping[str, list[Clip]], every: list[Clip]) -> LeaderboardRow:
    wer = {name: _wer(system, clips) for name, clips in parts.items() if clips}
    # from the wave to the text: the leaderboard's clock starts when the file is decoded
    ms = sum(total_ms(clip["stages_ms"][system]) - clip["stages_ms"][system]["decode"] for clip in every)
    return {
        "wer": wer,
        "average_wer": round(sum(wer.values()) / len(wer), 2),
        "rtfx": round(1000 * sum(clip["seconds"] for clip in every) / ms, 2),
    }


def _wer(system: str, clips: list[Clip]) -> float:
    errors = [word_errors(*(normalized(text) for text in (c["reference"], c["hypotheses"][system]))) for c in clips]
    return round(100 * sum(e.total for e in errors) / max(sum(e.length for e in errors), 1), 2)


def _scored(clip: Clip) -> bool:
    return normalized(clip["reference"]) not in ("", IGNORED)


@functools.lru_cache(maxsize=1 << 16)
def normalized(text: str) -> str:
    """A text as the leaderboard compares it: Whisper's normalizer as it is, without the workbench's own rules."""
    return _normalizer()(text).strip()


@functools.cache
def _normalizer() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    found: Callable[[str], str] = EnglishTextNormalizer(json.loads(spelling_table().read_text("utf-8")))
    return found


def _machine(report: Report) -> str:
    return f"Measured on {report['host']['cpu']} with {report['threads']} threads"


def leaderboard_rows(found: Leaderboard) -> list[tuple[str, ...]]:
    """Cells of the table, header first."""
    head = ("system", "Average WER", "RTFx", *found["clips"])
    return [
        head,
        *(
            (
                name,
                f"{row['average_wer']:.2f}",
                f"{row['rtfx']:.2f}",
                *(_shown(row["wer"].get(part)) for part in found["clips"]),
            )
            for name, row in found["systems"].items()
        ),
    ]


def _shown(wer: float | None) -> str:
    return "–" if wer is None else f"{wer:.2f}"


def leaderboard_title(found: Leaderboard) -> str:
    """What the table shows."""
    return f"Open ASR Leaderboard's protocol of {found['version']}: WER in percent of {sum(found['clips'].values()):,} clips in {len(found['clips'])} sets"


def print_leaderboard(found: Leaderboard) -> None:
    """Print the table, and what differs from the leaderboard."""
    head, *body = leaderboard_rows(found)
    print_rows(head, body, leaderboard_title(found), "\n".join(f"- {line}" for line in found["differs"]))
