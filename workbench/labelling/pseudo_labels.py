"""Pseudo-labels: a teacher transcribes audio that has no text, or whose text is not trusted.

Recordings longer than the teacher's window are cut into utterances first (labelling/segmentation.py). Every batch is appended to a
journal beside the manifest, so a killed run resumes; manifest and rejection report are written at the end.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn

from workbench.audio.decode import LONGEST_SECONDS, SAMPLE_RATE, Wave
from workbench.core.errors import UserError
from workbench.core.files import json_lines, json_text, write_jsonl
from workbench.core.hashing import hash_json
from workbench.core.machine.distributed import ProcessState, distributed_output_lock, start_processes, wait_for_all
from workbench.core.machine.kernels import choose_cuda_kernels
from workbench.core.ownership import audio_of, check_manifest, report_of
from workbench.core.progress import Progress
from workbench.corpus.manifests import MANIFEST_NAMES
from workbench.corpus.utterance import Utterance
from workbench.labelling.filters import Label, LabelFilters, reasons
from workbench.labelling.recordings import (
    UNUSABLE,
    Unfit,
    _has_manifest,
    audio_clips,
    clips_of_known_languages,
    recording_of,
)
from workbench.labelling.segmentation import (
    VoiceActivityDetector,
    check_disk,
    is_segmented,
    segment_recording,
    segmented_utterances,
)
from workbench.models import Family, open_family
from workbench.models.resolve import fingerprint, resolve_teacher
from workbench.models.states import encode_waves

log = logging.getLogger("workbench")


@dataclass(frozen=True)
class LabelSettings:
    """What a label depends on besides the clip."""

    teacher: str = "whisper-base"
    # a code for all clips, or `auto`: the teacher detects each clip's. None: the one in the manifest, English where there is none
    language: str | None = None
    beams: int = 1
    batch_clips: int = 4
    precision: str = "fp32"
    longest: float = 28.0  # seconds of an utterance that is cut out of a longer recording


class Found(TypedDict, total=False):
    """What became of a clip: its label, or `error` alone."""

    text: str
    confidence: float  # mean log-probability per token
    seconds: float  # of the clip
    language: str
    language_probability: float | None  # None where the user named the language
    error: str  # why the clip cannot be used


class JournalLine(Found):
    """A line of a journal."""

    key: str  # hash of all that the labels depend on besides the clips
    clip: str  # `_clip_key`


def label(
    source: Path, manifest: Path, settings: LabelSettings, limits: LabelFilters, split: str | None = None
) -> Path:
    """Transcribe the clips of a folder or manifest, filter the labels, and write a manifest that can be trained on.

    Args:
        source: a folder of audio files, or a manifest with or without text; a text is taken as reference for the WER.
        manifest: JSONL to write; `NAME.rejected.jsonl` beside it says what was left out and why. Utterances that are cut
            out of recordings of more than 30 s go to the folder `NAME.audio`.
        settings: teacher and decoding.
        limits: filters.
        split: split that every line gets; by default the one it has, and for bare audio what its label decides.

    Raises:
        UserError: no audio there, no label is fit, or another process writes the manifest.
    """
    own = [source / name for name in MANIFEST_NAMES] if source.is_dir() else [source]
    check_manifest(manifest, [*own, source])
    with distributed_output_lock(manifest):
        return _label(source, manifest, settings, limits, split)


def _label(source: Path, manifest: Path, settings: LabelSettings, limits: LabelFilters, split: str | None) -> Path:
    state = start_processes()
    folder = resolve_teacher(settings.teacher)
    family = open_family(folder)
    recordings, unfit = audio_clips(source, manifest)
    recordings, foreign = clips_of_known_languages(recordings, family, settings.language)
    unfit += foreign
    if settings.language is None and source.is_dir() and not _has_manifest(source):
        log.info("no --language: all recordings are transcribed as English; with `auto` the teacher detects each one's")
    clips, without_speech = _cut_long(recordings, manifest, settings.longest, state)
    # decoding decides the labels, filters do not: other limits need no new labels
    key = hash_json([fingerprint(folder), settings.language, settings.beams, settings.precision])
    journal = manifest.with_name(f".{manifest.name}.{state.process_index:03d}.journal")
    done = without_speech | dict(_read_journals(manifest, key))
    mine = [clip for clip in clips[state.process_index :: state.num_processes] if _clip_key(clip) not in done]
    if mine:
        choose_cuda_kernels()
        model = family.load().to(state.device)
        manifest.parent.mkdir(parents=True, exist_ok=True)
        with Progress("labels", len(clips), state.is_main_process, len(done)) as progress:
            for labelled in _labels(model, family, mine, settings, state.device):
                with journal.open("a", encoding="utf-8") as file:
                    for clip, found in labelled:
                        entry: JournalLine = {"key": key, "clip": _clip_key(clip), **found}
                        file.write("\n" + json_text(entry))
                progress.advance(len(labelled) * state.num_processes)
    wait_for_all()
    if state.is_main_process:
        entries = without_speech | dict(_read_journals(manifest, key))
        _write(clips, entries, unfit, source, manifest, limits, split)
        for path in manifest.parent.glob(f".{manifest.name}.*.journal"):
            path.unlink()
    wait_for_all()
    return manifest


def _cut_long(
    clips: list[Utterance], manifest: Path, longest: float, state: ProcessState
) -> tuple[list[Utterance], dict[str, Found]]:
    """The clips with utterances in the place of long recordings, and what is wrong with those that have none, by key."""
    recordings = [clip for clip in clips if clip.seconds > LONGEST_SECONDS]
    if not recordings:
        return clips, {}
    folder = audio_of(manifest)
    share = recordings[state.process_index :: state.num_processes]
    mine = [recording for recording in share if not is_segmented(recording, folder, longest)]
    if mine:
        check_disk(mine, folder)
        finder = VoiceActivityDetector()
        with Progress("utterances of long recordings", len(mine), state.is_main_process) as progress:
            for recording in mine:
                segment_recording(recording, folder, longest, finder)
                progress.advance()
    wait_for_all()
    found: list[Utterance] = []
    unfit: dict[str, tuple[Utterance, Found]] = {}
    for recording in recordings:
        try:
            found += segmented_utterances(recording, folder, longest)
        except UserError as error:
            unfit[_clip_key(recording)] = (recording, {"error": str(error)})
    log.info("%d recordings of more than %.0f s were cut into %d utterances in %s%s", len(recordings), LONGEST_SECONDS,
             len(found), folder,
             "; their texts cannot serve as references" if any(r.text for r in recordings) else "")  # fmt: skip
    short = [clip for clip in clips if clip.seconds <= LONGEST_SECONDS]
    out = sorted([*short, *found, *(r for r, _ in unfit.values())], key=lambda clip: (clip.seconds, clip.id))
    return out, {key: why for key, (_, why) in unfit.items()}


def _clip_key(clip: Utterance) -> str:
    return f"{clip.id}:{clip.audio_sha256()[:32]}"


def _read_journals(manifest: Path, key: str) -> Iterator[tuple[str, Found]]:
    for path in sorted(manifest.parent.glob(f".{manifest.name}.*.journal")):
        for line in json_lines(path):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # empty, or cut short by a kill
            if entry["key"] == key:
                yield entry["clip"], entry


@torch.no_grad()
def _labels(
    model: nn.Module, family: Family, clips: Sequence[Utterance], settings: LabelSettings, device: torch.device
) -> Iterator[list[tuple[Utterance, Found]]]:
    """Labels of each batch, clips that cannot be used with the reason."""
    for start in range(0, len(clips), settings.batch_clips):
        out: list[tuple[Utterance, Found]] = []
        usable: list[tuple[Utterance, Wave]] = []
        for clip in clips[start : start + settings.batch_clips]:
            try:
                usable.append((clip, clip.wave()))  # decoding stops at 30 s with an error
            except UserError as error:
                out.append((clip, {"error": str(error)}))
        if usable:
            waves = [wave for _, wave in usable]
            seconds = [len(wave) / SAMPLE_RATE for wave in waves]
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                states, attention_mask = encode_waves(family, model, waves, family.input_seconds(waves), device)
                told = family.languages(model, states) if settings.language == "auto" else None
                languages = [code for code, _ in told] if told else [settings.language or u.language for u, _ in usable]
                found = family.transcribe(
                    model, states, seconds, languages, settings.beams, attention_mask=attention_mask
                )
            for i, (clip, _) in enumerate(usable):
                out.append((clip, {"text": found[i].text, "confidence": found[i].log_probability,
                                   "seconds": seconds[i], "language": languages[i],
                                   "language_probability": told[i][1] if told else None}))  # fmt: skip
        yield out


def _write(
    clips: Iterable[Utterance],
    found: Mapping[str, Found],
    unfit: Sequence[Unfit],
    source: Path,
    manifest: Path,
    limits: LabelFilters,
    split: str | None,
) -> None:
    kept: list[dict[str, Any]] = []
    rejected: list[Mapping[str, object]] = list(unfit)
    counts = Counter(reason for row in unfit for reason in row["reasons"])
    seconds = 0.0
    for clip in clips:
        entry = found[_clip_key(clip)]
        row: dict[str, Any] = {"id": clip.id, **recording_of(clip)}
        if "error" in entry:
            why = [UNUSABLE]
            row |= {"reasons": why, "error": entry["error"]}
        else:
            made = Label(entry["text"], entry["seconds"], entry["language"], entry["confidence"],
                         entry["language_probability"], clip.text)  # fmt: skip
            why = reasons(made, limits)
            row.setdefault("duration", round(made.seconds, 3))  # a segment keeps its own
            row |= {"text": made.text, "language": made.language}
            row |= {"split": chosen} if (chosen := split or clip.split) else {}
            row |= {"reference": clip.text} if clip.text else {}
            row |= {k: v for k, v in made.figures().items() if v is not None}
            row |= {"reasons": why} if why else {}
        if why:
            rejected.append(row)
            counts.update(why)
        else:
            kept.append(row)
            seconds += row["duration"]
    report = report_of(manifest)
    write_jsonl(report, rejected)
    why_text = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"
    log.info("%d labels kept, %.2f hours; %d rejected (%s); see %s", len(kept), seconds / 3600,
             len(rejected), why_text, report)  # fmt: skip
    if not kept:
        raise UserError(
            f"{source}: no label is fit ({why_text}); see {report}, and loosen the limits if they are wrong"
        )
    write_jsonl(manifest, kept)
