"""`workbench transcribe`: recordings of any format, with a bundle or with a checkpoint in torch."""

import json
from dataclasses import replace

import numpy as np
import pytest

from export.edge import Recognizer
from export.transcription import TranscribeOptions, transcribe_files
from workbench.audio.decode import SAMPLE_RATE, decode, write_flac, write_wav
from workbench.cli.app import main
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.evaluation.transcribe import validate
from workbench.models import open_family


@pytest.fixture(scope="module")
def clips():
    return [u for u in open_corpus("prompts-en", "validation") if 1.5 < u.seconds < 3][:2]


def files_of(clips, folder):
    paths = []
    for clip in clips:
        paths.append(folder / f"{clip.id}.flac")
        write_flac(paths[-1], clip.wave())
    return paths


def test_a_bundle_writes_what_its_runtime_writes(exported, clips, tmp_path):
    paths = files_of(clips, tmp_path)
    options = TranscribeOptions("en")
    found = list(transcribe_files(paths, exported, options, "int8", 1))
    expected = [Recognizer(exported, "int8", 1).transcribe(decode(path), "en").text for path in paths]
    assert found == [f"{path}\t{text}" for path, text in zip(paths, expected, strict=True)]


def test_a_checkpoint_writes_what_validation_writes(student, clips, tmp_path):
    paths = files_of(clips, tmp_path)
    found = list(transcribe_files(paths, str(student), TranscribeOptions("en")))
    family = open_family(student)
    saved = [replace(clip, audio=path) for clip, path in zip(clips, paths, strict=True)]
    expected = [validate(family.load(), family, [clip], family.silence).hypotheses[0] for clip in saved]
    assert found == [f"{path}\t{text}" for path, text in zip(paths, expected, strict=True)]


@pytest.mark.parametrize("kind", ["bundle", "checkpoint"])
def test_a_long_recording_is_cut_at_its_pauses_and_silence_has_no_text(kind, exported, student, clips, tmp_path):
    silence = np.zeros(16 * SAMPLE_RATE, np.float32)
    first, second = (clip.wave() for clip in clips)
    write_wav(tmp_path / "long.wav", np.concatenate([first, silence, silence, second]))
    write_wav(tmp_path / "silence.wav", silence)
    model = exported if kind == "bundle" else str(student)
    options = TranscribeOptions("en", "json")
    rows = [
        json.loads(line)["segments"]
        for line in transcribe_files([tmp_path / "long.wav", tmp_path / "silence.wav"], model, options)
    ]
    long, quiet = rows
    assert len(long) == 2
    assert abs(long[1]["start"] - (len(first) / SAMPLE_RATE + 32)) < 1
    assert all(segment["text"] for segment in long)
    assert [segment["text"] for segment in quiet] == [""]


def test_the_language_is_detected_or_refused(exported, student, clips, tmp_path):
    paths = files_of(clips[:1], tmp_path)
    for model in (exported, str(student)):
        row = json.loads(next(iter(transcribe_files(paths, model, TranscribeOptions(output_format="json")))))
        assert row["segments"][0]["language"] in ("en", "es")
        with pytest.raises(UserError, match="xx"):
            list(transcribe_files(paths, model, TranscribeOptions("xx")))


def test_subtitles_go_to_a_folder_and_replace_nothing(exported, clips, tmp_path):
    paths, folder = files_of(clips, tmp_path), tmp_path / "subtitles"
    options = TranscribeOptions("en", "srt", folder=folder)
    written = list(transcribe_files(paths, exported, options))
    assert written == [str(folder / f"{clip.id}.srt") for clip in clips]
    assert (folder / f"{clips[0].id}.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:0")
    with pytest.raises(UserError, match="exists; choose another -o, or add --overwrite"):
        list(transcribe_files(paths, exported, options))
    twins = [paths[0], tmp_path / "other" / paths[0].name]
    with pytest.raises(UserError, match="several recordings of one name"):
        list(transcribe_files(twins, exported, TranscribeOptions(folder=tmp_path / "new")))


def test_one_bad_file_does_not_stop_the_others(exported, clips, tmp_path, monkeypatch, capsys, caplog):
    paths = files_of(clips[:1], tmp_path)
    (tmp_path / "text.wav").write_text("not audio")
    given = ["transcribe", str(tmp_path / "text.wav"), str(paths[0]), "--bundle", str(exported), "--language", "en"]
    monkeypatch.setattr("sys.argv", ["workbench", *given])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out.startswith(f"{paths[0]}\t")
    assert "text.wav: cannot be decoded as audio" in caplog.text
    assert "error: 1 of 2 recordings could not be transcribed" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (TranscribeOptions(output_format="txt"), "--format 'txt'; did you mean 'text'"),
        (TranscribeOptions(words=True), "add --format json"),
        (TranscribeOptions(output_format="vtt"), "add -o FOLDER"),
    ],
)
def test_wrong_options_are_said_before_a_model_is_loaded(options, said, tmp_path):
    with pytest.raises(UserError, match=said):
        list(transcribe_files([tmp_path / "a.wav", tmp_path / "b.wav"], "no-such-model", options))


def test_hotwords_and_a_limit_are_a_bundles(exported, clips, tmp_path, capsys, monkeypatch):
    (path,) = files_of(clips[:1], tmp_path)
    words = tmp_path / "words.txt"
    words.write_text("zebra\n")
    options = TranscribeOptions("en", hotwords=words, hotwords_score=20)
    (found,) = transcribe_files([path], exported, options, "fp32", 1)
    assert "zebra" in found.lower()
    options = TranscribeOptions("en", min_logprob=-1e-9)
    assert list(transcribe_files([path], exported, options, "fp32", 1)) == [f"{path}\t"]
    for wrong, said in [
        (["--hotwords", str(words)], "--hotwords: needs a bundle"),
        (["--min-logprob", "-1.5"], "--min-logprob: needs a bundle"),
        (["--bundle", str(exported), "--hotwords-score", "3"], "--hotwords-score: there are no hotwords"),
        (["--bundle", str(exported), "--hotwords", str(tmp_path / "none.txt")], "none.txt: cannot be read"),
    ]:
        monkeypatch.setattr("sys.argv", ["workbench", "transcribe", str(path), *wrong])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
