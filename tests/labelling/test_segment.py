"""Long recordings become utterances: cut in pauses, none too long, each once."""

import json

import numpy as np
import pytest
import torch

import workbench.labelling.pseudo_labels
import workbench.labelling.segmentation
from tests.conftest import tone
from tests.labelling.test_label import LOOSE, no_loops, rows, settings  # noqa: F401  fixtures
from workbench.audio.decode import SAMPLE_RATE, write_wav
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.corpus.utterance import Utterance
from workbench.labelling.pseudo_labels import LabelSettings, label
from workbench.labelling.segmentation import (
    SpeechSpan,
    VoiceActivityDetector,
    joined_pieces,
    segment_recording,
    segmented_utterances,
)


def silence(seconds):
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory):
    """Real prompts with 1.5 s of silence between them, 40 s or more; where each stands, and what it says."""
    pieces, spans, texts, at = [], [], [], 0.0
    for clip in (u for u in open_corpus("prompts-en", "validation") if 2 < u.seconds < 6):
        wave = clip.wave()
        pieces += [wave, silence(1.5)]
        spans.append((at, at + len(wave) / SAMPLE_RATE))
        texts.append(clip.text)
        at += len(wave) / SAMPLE_RATE + 1.5
        if at > 40:
            break
    path = tmp_path_factory.mktemp("long") / "meeting.wav"
    write_wav(path, np.concatenate(pieces))
    return Utterance("meeting", path, "", at), spans, texts


def test_neighbours_are_joined_where_they_fit():
    pieces = [SpeechSpan(0, 2), SpeechSpan(2.5, 4), SpeechSpan(4.2, 9), SpeechSpan(12, 13), SpeechSpan(13.5, 13.55)]
    assert joined_pieces(pieces, 5.0) == [SpeechSpan(0, 4), SpeechSpan(4.2, 9), SpeechSpan(12, 13.55)]
    assert joined_pieces(pieces, 30.0) == [SpeechSpan(0, 9), SpeechSpan(12, 13.55)]
    assert joined_pieces([SpeechSpan(0, 0.05)], 5.0) == []


def test_every_prompt_lies_whole_within_one_utterance(long_recording, tmp_path):
    recording, spans, _ = long_recording
    threads = torch.get_num_threads()
    segment_recording(recording, tmp_path, 10.0, VoiceActivityDetector())
    assert torch.get_num_threads() == threads
    found = segmented_utterances(recording, tmp_path, 10.0)
    assert all(u.seconds <= 10.0 for u in found)
    assert all(len(u.wave()) == pytest.approx(u.seconds * SAMPLE_RATE, abs=2) for u in found)
    starts = [float(u.id.split("@")[1]) for u in found]
    for start, end in spans:  # prompts begin and end with some silence of their own
        inside = [s for s, u in zip(starts, found, strict=True) if s <= start + 0.5 and end - 0.6 <= s + u.seconds]
        assert inside, (start, end, starts)


def test_speech_without_a_pause_is_cut_to_length(tmp_path):
    clip = max(open_corpus("prompts-en", "train"), key=lambda u: u.seconds)
    path = tmp_path / "long.wav"
    wave = clip.wave()
    write_wav(path, np.concatenate([wave] * (1 + int(40 * SAMPLE_RATE / len(wave)))))
    recording = Utterance("long", path, "", 45.0)
    segment_recording(recording, tmp_path / "out", 8.0, VoiceActivityDetector())
    found = segmented_utterances(recording, tmp_path / "out", 8.0)
    assert max(u.seconds for u in found) <= 8.0
    assert sum(u.seconds for u in found) > 25


def test_a_recording_is_cut_once(long_recording, settings, tmp_path, cache, monkeypatch):  # noqa: F811
    recording, _, _ = long_recording
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / "meeting.wav").write_bytes(recording.audio.read_bytes())
    before = rows(label(folder, tmp_path / "labels.jsonl", settings, LOOSE))
    monkeypatch.setattr(workbench.labelling.segmentation, "decode", None)
    monkeypatch.setattr(workbench.labelling.pseudo_labels, "VoiceActivityDetector", None)  # nor is the detector loaded
    assert rows(label(folder, tmp_path / "labels.jsonl", settings, LOOSE)) == before


def test_without_the_detector_the_install_line_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "silero_vad", None)
    with pytest.raises(UserError, match="silero-vad, which cannot be imported"):
        VoiceActivityDetector()


def test_labels_of_a_long_recording(long_recording, settings, tmp_path, cache):  # noqa: F811
    recording, _, _ = long_recording
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / "meeting.wav").write_bytes(recording.audio.read_bytes())
    write_wav(folder / "hum.wav", tone(31.0))
    manifest = label(folder, tmp_path / "labels.jsonl", settings, LOOSE)
    kept, rejected = rows(manifest), rows(tmp_path / "labels.rejected.jsonl")
    assert len(kept) == len(segmented_utterances(recording, tmp_path / "labels.audio", 28.0))
    assert all(r["id"].startswith("meeting.wav@") for r in kept)
    assert [r["id"] for r in rejected] == ["hum.wav"]
    assert "no speech" in rejected[0]["error"]
    assert len(open_corpus(str(manifest), "train")) > 0


@pytest.mark.slow
def test_whisper_base_reads_a_long_recording(long_recording, tmp_path):
    from workbench.evaluation.scoring import score
    from workbench.labelling.filters import LabelFilters

    recording, _, texts = long_recording
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"audio": str(recording.audio), "text": " ".join(texts), "split": "train"}) + "\n")
    labels = rows(label(manifest, tmp_path / "labels.jsonl", LabelSettings(), LabelFilters()))
    ordered = sorted(labels, key=lambda r: float(r["id"].split("@")[1]))
    assert score([" ".join(texts)], [" ".join(r["text"] for r in ordered)], "en").wer < 15
