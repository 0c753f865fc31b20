"""Pseudo-labels: filters, the rejection report, and a killed run that labels nothing twice."""

import json
import os
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import workbench.labelling.pseudo_labels
from tests.conftest import tone
from workbench.audio.decode import write_wav
from workbench.core.errors import UserError
from workbench.core.hashing import sha256
from workbench.corpus import open_corpus
from workbench.corpus.manifests import read_manifest
from workbench.labelling.filters import Label, LabelFilters, reasons
from workbench.labelling.pseudo_labels import LabelSettings, label

LOOSE = LabelFilters(None, None, None, None, None, None)


def made(text="please enter your password", seconds=2.0, confidence=-0.1, **changes):
    return Label(text, seconds, "en", confidence, **changes)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (made(), []),
        (made("..."), ["empty"]),
        (
            made("Please dial the number on the card. " * 4 + "Then press one.", 10.0),
            [],
        ),  # a sentence that is really said four times
        (
            made("Please dial the number on the card. " * 4 + "Then press one.", 5.0),
            ["repetition", "compression", "fast"],
        ),
        (made("Please dial the number on the card. " * 4 + "Then press one.", 28.0), ["repetition", "compression"]),
        (made("one two " * 12, 6.0), ["repetition", "compression"]),
        (made(confidence=-1.4), ["confidence"]),
        (made("no", 9.0), ["slow"]),
        (made("the quick brown fox jumps over the lazy dog", 0.8), ["fast"]),
        (made(language_probability=0.3), ["language"]),
        (made(reference="please enter your name"), ["wer"]),
        (made(reference="Please, enter your password."), []),  # punctuation and case are no errors
    ],
)
def test_a_filter_names_what_is_wrong(found, expected):
    assert reasons(found, LabelFilters()) == expected


def test_filters_can_be_switched_off():
    assert reasons(made("no", 9.0, -5.0, language_probability=0.0, reference="yes"), LOOSE) == []


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings" / "deeper"
    folder.mkdir(parents=True)
    for u in [u for u in open_corpus("prompts-en", "test") if u.seconds < 2][:7]:
        (folder / u.audio.name).write_bytes(u.audio.read_bytes())
    (folder / "broken.wav").write_bytes(b"no audio")
    write_wav(folder / "long.wav", tone(31.0))
    return tmp_path / "recordings"


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def settings(tiny_checkpoint, no_loops):
    return LabelSettings(str(tiny_checkpoint), "en", 1, 2)


@pytest.fixture
def no_loops(monkeypatch):
    """A random model's transcripts loop; here they count as labels."""
    monkeypatch.setattr("workbench.labelling.filters.is_loop", lambda *_: False)
    monkeypatch.setattr("workbench.labelling.filters.normalize", lambda text, _: text or "x")


def test_a_folder_of_recordings_becomes_a_manifest_and_a_report(recordings, settings, tmp_path, cache):
    manifest = label(recordings, tmp_path / "out" / "labels.jsonl", settings, LOOSE)
    kept, rejected = rows(manifest), rows(manifest.with_name("labels.rejected.jsonl"))
    assert len(kept) == 7
    assert {r["id"]: r["reasons"] for r in rejected} == {
        "deeper/broken.wav": ["unusable audio"], "deeper/long.wav": ["unusable audio"],
    }  # fmt: skip
    assert "no speech" in next(r["error"] for r in rejected if "long" in r["id"])
    assert {"text", "confidence", "duration", "language", "rate", "compression"} <= set(kept[0])
    assert not list(manifest.parent.glob(".*"))


def test_every_file_of_any_name_and_format_is_in_one_of_the_two_outputs(settings, tmp_path, cache):
    folder = tmp_path / "recordings"
    folder.mkdir()
    (speech,) = [u for u in open_corpus("prompts-en", "test") if u.seconds < 2][:1]
    names = [b"12:30 a.opus", b"caf\xe9.opus", b"no_suffix", b"video.MPGA", b"-n.opus", "日本.opus".encode()]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(speech.audio.read_bytes())
    (folder / "notes.txt").write_text("a text")
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    (folder / "empty.flac").write_bytes(b"")
    manifest = label(folder, folder / "labels.jsonl", settings, LOOSE)
    kept, rejected = rows(manifest), rows(folder / "labels.rejected.jsonl")
    assert {row["id"] for row in kept} == {
        "12:30 a.opus", "caf\\xe9.opus", "no_suffix", "video.MPGA", "-n.opus", "日本.opus",
    }  # fmt: skip
    assert {row["id"] for row in rejected} == {"notes.txt", "gone.wav", "empty.flac"}
    assert all(row["reasons"] == ["unusable audio"] for row in rejected)
    # the manifest can be trained on, whatever its files are called, and what label wrote is no recording of the next call
    assert len(read_manifest(manifest)) == len(names)
    again = label(folder, folder / "labels.jsonl", settings, LOOSE)
    assert {row["id"] for row in rows(again)} == {row["id"] for row in kept}


def test_each_clip_is_transcribed_in_its_manifests_language(speech, settings, tmp_path, cache):
    manifest = speech(2)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    languages = {row["id"]: code for row, code in zip(lines, ["en", "es", "tlh", "en", "es", "en"], strict=True)}
    manifest.write_text("".join(json.dumps(row | {"language": languages[row["id"]]}) + "\n" for row in lines))
    own = label(manifest, tmp_path / "own.jsonl", replace(settings, language=None), LOOSE)
    assert {row["id"]: row["language"] for row in rows(own)} == {k: v for k, v in languages.items() if v != "tlh"}
    (foreign,) = rows(tmp_path / "own.rejected.jsonl")
    assert (languages[foreign["id"]], foreign["reasons"]) == ("tlh", ["unknown language"])
    with pytest.raises(UserError, match="language 'tlh' is not supported by this Whisper model"):
        label(manifest, tmp_path / "forced.jsonl", replace(settings, language="tlh"), LOOSE)
    forced = label(manifest, tmp_path / "forced.jsonl", settings, LOOSE)
    assert {row["language"] for row in rows(forced)} == {"en"}


def test_a_text_with_a_line_separator_survives_a_resumed_labelling(recordings, settings, tmp_path, cache, monkeypatch):
    """Journals and manifests are split at newlines alone: U+2028 inside a text is no new line."""
    work = workbench.labelling.pseudo_labels._labels

    def separated(*args):
        for batch in work(*args):
            yield [(clip, found | {"text": "a\u2028b"} if "text" in found else found) for clip, found in batch]

    monkeypatch.setattr(workbench.labelling.pseudo_labels, "_labels", separated)
    manifest = label(recordings, tmp_path / "labels.jsonl", settings, LOOSE)
    assert [json.loads(line)["text"] for line in manifest.read_text().split("\n") if line] == ["a\u2028b"] * 7


def test_a_killed_labelling_goes_on_and_ends_the_same(recordings, settings, tmp_path, cache, monkeypatch):
    whole = label(recordings, tmp_path / "whole.jsonl", settings, LOOSE)
    labelled = []
    work = workbench.labelling.pseudo_labels._labels

    def dying(*args):
        for batch in work(*args):
            labelled.extend(clip.id for clip, _ in batch)
            yield batch
            if len(labelled) in (4, 5, 6):
                raise KeyboardInterrupt

    monkeypatch.setattr(workbench.labelling.pseudo_labels, "_labels", dying)
    with pytest.raises(KeyboardInterrupt):
        label(recordings, tmp_path / "killed.jsonl", settings, LOOSE)
    with next(tmp_path.glob(".killed.jsonl.*.journal")).open("a") as file:
        file.write('\n{"key": "torn')
    monkeypatch.setattr(workbench.labelling.pseudo_labels, "_labels", work)
    done = len(labelled)
    killed = label(recordings, tmp_path / "killed.jsonl", settings, LOOSE)
    assert done >= 4
    assert killed.read_bytes() == whole.read_bytes()


def test_other_limits_change_what_is_kept(recordings, settings, tmp_path, cache):
    with pytest.raises(UserError, match=r"no label is fit \(fast 7, unusable audio 2\)"):
        label(recordings, tmp_path / "labels.jsonl", settings, LabelFilters(None, None, None, None, 1e-3, None))
    assert not (tmp_path / "labels.jsonl").exists()
    assert len(rows(tmp_path / "labels.rejected.jsonl")) == 9


def test_a_manifest_s_text_is_the_reference_and_its_split_stays(speech, settings, tmp_path, cache):
    manifest = label(speech(2), tmp_path / "labels.jsonl", settings, LOOSE)
    kept = rows(manifest)
    assert {r["split"] for r in kept} == {"train", "validation", "test"}
    assert all(r["reference"] and "wer" in r for r in kept)


def test_a_folder_without_audio_is_refused(tmp_path, settings, cache):
    with pytest.raises(UserError, match="neither a manifest nor any file"):
        label(tmp_path, tmp_path / "x.jsonl", settings, LOOSE)


def test_wrong_options_are_one_line(tmp_path, cache):
    from workbench.cli.app import app

    result = CliRunner().invoke(app, ["label", str(tmp_path), "-o", str(tmp_path / "x.jsonl"), "--precision", "fp61"])
    assert isinstance(result.exception, UserError)
    assert "fp61" in str(result.exception)


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 3])
def test_whisper_base_labels_real_speech(tmp_path, beams):
    folder = tmp_path / "speech"
    folder.mkdir()
    clips = [u for u in open_corpus("prompts-en", "validation") if 2 < u.seconds < 6][:4]
    for u in clips:
        (folder / u.audio.name).write_bytes(u.audio.read_bytes())
    write_wav(folder / "tone.wav", tone(3.0))
    manifest = label(folder, tmp_path / "labels.jsonl", LabelSettings(language="auto", beams=beams), LabelFilters())
    kept = {r["id"]: r for r in rows(manifest)}
    right = [u for u in clips if u.audio.name in kept
             and not reasons(made(kept[u.audio.name]["text"], u.seconds, reference=u.text), LabelFilters(max_wer=25.0))]  # fmt: skip
    assert len(right) >= 3
    assert {r["language"] for r in kept.values()} == {"en"}
    assert sha256(manifest)


def test_segments_of_a_recording_are_labelled_as_segments(settings, tmp_path, cache):
    write_wav(tmp_path / "joined.wav", tone(5.0))
    lines = [
        {"audio_filepath": "joined.wav", "offset": 0.0, "duration": 2.0005, "text": "One."},
        {"audio_filepath": "joined.wav", "offset": 2.0005, "duration": 1.5, "text": "Two."},
        {"audio_filepath": "joined.wav", "offset": 3.6, "duration": 1.0, "text": "Three.", "language": "tlh"},
    ]
    source = tmp_path / "nemo.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in lines))
    manifest = label(source, tmp_path / "out" / "labels.jsonl", replace(settings, language=None), LOOSE)
    given = read_manifest(source)
    # offset and duration are kept to the last digit, so that cached targets of the segments are found again
    assert {u.id: u.audio_sha256() for u in read_manifest(manifest)} == {u.id: u.audio_sha256() for u in given[:2]}
    (rejected,) = rows(manifest.with_name("labels.rejected.jsonl"))
    assert (rejected["id"], rejected["audio"]) == (given[2].id, str(tmp_path / "joined.wav"))
    assert (rejected["offset"], rejected["duration"], rejected["reasons"]) == (3.6, 1.0, ["unknown language"])
