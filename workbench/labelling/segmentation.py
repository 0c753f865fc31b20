"""Split long recordings into utterances at pauses, so that a teacher with a window of 30 s can label them.

The pieces are written beside the manifest, each once: a killed command resumes, and everything downstream reads files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.audio.decode import LONGEST_SECONDS, SAMPLE_RATE, SHORTEST_SECONDS, Wave, decode, write_flac
from workbench.core.atomic import atomic_path
from workbench.core.disk import check_free_space
from workbench.core.errors import UserError
from workbench.core.files import read_json, write_json
from workbench.corpus.utterance import AudioSegment, Utterance

PAD_SECONDS = 0.1  # kept before and after speech, so that no first or last sound is lost
LONGEST_PAUSE_SECONDS = 1.0  # a pause longer than this ends an utterance even if more would fit
BYTES_A_SECOND = 20_000  # 16 kHz speech in FLAC
INSTALL = "pip install -c constraints.txt -e '.[cpu]'"


@dataclass(frozen=True)
class SpeechSpan:
    """A stretch of a recording that one utterance is made of."""

    start: float  # seconds
    end: float  # seconds


class VoiceActivityDetector:
    """Silero VAD, whose model is in its wheel."""

    def __init__(self) -> None:
        """Load the model; raises UserError if onnxruntime is not installed."""
        threads = torch.get_num_threads()
        try:
            from silero_vad import get_speech_timestamps_sequence, load_silero_vad

            self.model: Any = load_silero_vad(onnx=True, sequence=True)
        except ImportError as error:
            raise UserError(f"recordings of more than {LONGEST_SECONDS:.0f} s are cut with silero-vad, which cannot be imported ({error}); {INSTALL}") from None  # fmt: skip
        finally:
            torch.set_num_threads(threads)  # the package sets it to 1 when it is imported
        self.find = get_speech_timestamps_sequence

    def pieces(self, wave: Wave, longest: float) -> list[SpeechSpan]:
        """Stretches of speech of at most `longest` seconds, neighbours joined where they fit.

        Longer speech is cut at its longest silence. wave: [samples], 16 kHz.
        """
        spans = self.find(
            wave, self.model, max_speech_duration_s=longest - 2 * PAD_SECONDS, speech_pad_ms=round(1000 * PAD_SECONDS)
        )
        return joined_pieces([SpeechSpan(s["start"] / SAMPLE_RATE, s["end"] / SAMPLE_RATE) for s in spans], longest)


def joined_pieces(pieces: Sequence[SpeechSpan], longest: float) -> list[SpeechSpan]:
    """Neighbours as one where the pause between them is short and the whole lasts at most `longest` seconds."""
    out: list[SpeechSpan] = []
    for piece in pieces:
        last = out[-1] if out else None
        if last and piece.start - last.end <= LONGEST_PAUSE_SECONDS and piece.end - last.start <= longest:
            out[-1] = SpeechSpan(last.start, piece.end)
        else:
            out.append(piece)
    return [p for p in out if p.end - p.start >= SHORTEST_SECONDS]


def segment_recording(recording: Utterance, folder: Path, longest: float, finder: VoiceActivityDetector) -> None:
    """Write the utterances of one recording to `folder` as FLAC, and an index of them.

    Args:
        recording: its audio is a file of any length; it takes about 0.5 GB of memory per hour.
        folder: where the pieces go.
        longest: seconds of the longest piece.
        finder: the voice activity detector.
    """
    index = _index(recording, folder, longest)
    assert isinstance(recording.audio, Path | AudioSegment)  # noqa: S101  only files are labelled
    pieces: list[SpeechSpan] = []
    problem = None
    try:
        wave = recording.audio.wave() if isinstance(recording.audio, AudioSegment) else decode(recording.audio)
        pieces = finder.pieces(wave, longest)
        problem = None if pieces else f"{recording.name}: silero-vad finds no speech in it"
    except UserError as error:
        problem = str(error)
    for number, piece in enumerate(pieces):
        samples = wave[round(piece.start * SAMPLE_RATE) : round(piece.end * SAMPLE_RATE)]
        with atomic_path(_piece_path(index, number)) as path:
            write_flac(path, np.ascontiguousarray(samples))
    content = {"recording": recording.name, "pieces": [[p.start, p.end] for p in pieces], "problem": problem}
    write_json(index, content)  # last: where it exists, every piece does


def is_segmented(recording: Utterance, folder: Path, longest: float) -> bool:
    """Whether `segment_recording` has processed this recording."""
    return _index(recording, folder, longest).is_file()


def segmented_utterances(recording: Utterance, folder: Path, longest: float) -> list[Utterance]:
    """The utterances that `segment_recording` has written; raises UserError for a recording that none could be made of."""
    index = _index(recording, folder, longest)
    content = read_json(index, "the utterances of a recording")
    if content["problem"]:
        raise UserError(content["problem"])
    return [
        Utterance(
            f"{recording.id}@{start:.2f}",
            _piece_path(index, number),
            "",
            end - start,
            recording.language,
            recording.split,
        )
        for number, (start, end) in enumerate(content["pieces"])
    ]


def check_disk(recordings: Sequence[Utterance], folder: Path) -> None:
    """Raise UserError if the disk cannot hold the utterances of these recordings."""
    needed = int(BYTES_A_SECOND * sum(recording.seconds for recording in recordings))
    check_free_space(folder, needed, "the utterances of long recordings")


def _index(recording: Utterance, folder: Path, longest: float) -> Path:
    return folder / f"{recording.audio_sha256()[:16]}-{longest:g}.json"


def _piece_path(index: Path, number: int) -> Path:
    return index.with_name(f"{index.stem}-{number:05d}.flac")
