"""Corpora: the built-in one keeps its promises, a user's own is read or refused line by line."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import tone
from workbench.audio.decode import write_wav
from workbench.core.errors import UserError
from workbench.corpus import SPLITS, open_corpus
from workbench.corpus.batching import padding_share, plan_steps
from workbench.corpus.manifests import read_manifest
from workbench.evaluation.scoring import normalize


def test_no_transcript_stands_in_two_parts_of_the_built_in_corpus():
    texts = {split: {normalize(u.text) for u in open_corpus("prompts-en", split)} for split in SPLITS}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]


def test_the_built_in_split_is_about_70_10_20_and_fixed():
    clips = {split: len(open_corpus("prompts-en", split)) for split in SPLITS}
    assert clips == {"train": 382, "validation": 47, "test": 119}


def test_the_built_in_corpus_is_small_speech_with_licence_and_credit():
    folder = open_corpus("prompts-en", "test")[0].audio.parent.parent
    assert sum(p.stat().st_size for p in folder.rglob("*")) < 10e6
    assert "CC-BY-SA-3.0" in (folder / "LICENSE").read_text()
    assert "Allison Smith" in (folder / "README.md").read_text()
    assert not [u for split in SPLITS for u in open_corpus("prompts-en", split) if "[" in u.text]


def test_built_in_audio_decodes_to_its_recorded_length():
    for utterance in open_corpus("prompts-en", "validation")[:5]:
        assert len(utterance.wave()) / 16000 == pytest.approx(utterance.seconds, abs=0.05)


@pytest.fixture
def clip(tmp_path):
    write_wav(tmp_path / "a.wav", tone(1.5))
    return tmp_path


def test_jsonl_csv_and_nemo_manifests_read_alike(clip):
    (clip / "m.jsonl").write_text('{"audio": "a.wav", "text": "Hello."}\n\n')
    (clip / "m.csv").write_text("audio,text,duration,language\na.wav,Hello.,1.5,en\n")
    (clip / "nemo.json").write_text(
        json.dumps({"audio_filepath": str(clip / "a.wav"), "text": "Hello.", "duration": 1.5}) + "\n"
    )
    found = [read_manifest(clip / name)[0] for name in ("m.jsonl", "m.csv", "nemo.json")]
    assert {(u.id, u.text, u.language, u.split) for u in found} == {("a.wav", "Hello.", "en", found[0].split)}
    assert all(u.seconds == pytest.approx(1.5) for u in found)


def test_a_folder_is_found_by_its_manifest(clip):
    (clip / "metadata.csv").write_text("file_name,transcription\na.wav,Hello.\n")
    assert read_manifest(clip)[0].text == "Hello."


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"audio": "a.wav"}', "m.jsonl:1: no field 'text'"),
        ('{"audio": "a.wav", "text": " "}', "m.jsonl:1: field 'text' is empty"),
        ('{"audio": "b.wav", "text": "x"}', "m.jsonl:1: field 'audio' names 'b.wav'"),
        (
            '{"audio": "a.wav", "text": "x"}\n{"audio": "a.wav", "text": "y"}',
            "m.jsonl:2: id 'a.wav' is already on line 1",
        ),
        ('{"audio": "a.wav", "text": "x", "duration": "long"}', "m.jsonl:1: field 'duration' is 'long'"),
        ('{"audio": "a.wav", "text": "x", "split": "trian"}', "did you mean 'train'?"),
        ('{"audio": "a.wav", "text": ', "m.jsonl:1: not a JSON object"),
        ("[1]", "m.jsonl:1: expected a JSON object"),
        ("", "holds no utterance"),
    ],
)
def test_bad_manifest_lines_are_named(clip, lines, said):
    (clip / "m.jsonl").write_text(lines + "\n")
    with pytest.raises(UserError) as error:
        read_manifest(clip / "m.jsonl")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_latin_1_is_named_with_its_line_and_remedy(clip):
    (clip / "m.jsonl").write_bytes(
        b'{"audio": "a.wav", "text": "x"}\n' + '{"audio": "a.wav", "text": "ñ"}'.encode("latin-1")
    )
    with pytest.raises(UserError, match=r"m\.jsonl:2: not UTF-8 .*iconv"):
        read_manifest(clip / "m.jsonl")


def test_clips_beyond_the_window_are_refused_before_anything_starts(clip):
    (clip / "m.jsonl").write_text('{"audio": "a.wav", "text": "x", "duration": 7200, "split": "train"}\n')
    with pytest.raises(UserError, match=r"lasts 7,200\.0 s"):
        open_corpus(str(clip / "m.jsonl"), "train")


@pytest.mark.parametrize(("source", "split", "said"), [
    ("prompts-eng", "train", "did you mean 'prompts-en'?"), ("prompts-en", "tset", "did you mean 'test'?"),
])  # fmt: skip
def test_unknown_corpora_and_splits_name_the_nearest(source, split, said):
    with pytest.raises(UserError) as error:
        open_corpus(source, split)
    assert said in str(error.value)


def test_a_hugging_face_dataset_streams_into_the_same_records(tmp_path):
    data = tmp_path / "dataset" / "train"
    data.mkdir(parents=True)
    for i in range(3):
        write_wav(data / f"{i}.wav", tone(0.5 + i))
    (data / "metadata.csv").write_text("file_name,sentence\n0.wav,zero\n1.wav,one\n2.wav,two\n")
    found = open_corpus(f"hf:{tmp_path / 'dataset'}", "train", limit=2)
    assert [u.text for u in found] == ["zero", "one"]
    assert len(found[1].wave()) == 24000
    assert found[1].seconds == pytest.approx(1.5)


def test_a_dataset_without_transcripts_is_named(tmp_path):
    data = tmp_path / "dataset"
    data.mkdir()
    write_wav(data / "a.wav", tone(1.0))
    with pytest.raises(UserError, match="no transcript"):
        open_corpus(f"hf:{data}", "train")


def test_batches_hold_each_clip_once_within_the_budget():
    clips = open_corpus("prompts-en", "train")
    steps = plan_steps(clips, 24.0, 0.2, (1, 0, 0))
    assert Counter(i for step in steps for i in step.clips) == Counter(range(len(clips)))
    for step in steps:
        assert step.seconds == max(clips[i].seconds for i in step.clips)
        assert len(step.clips) * (step.seconds + 0.2) <= 24.0 or len(step.clips) == 1
    assert padding_share(clips, steps) < 0.15


def test_batches_depend_on_the_seed_alone():
    clips = open_corpus("prompts-en", "train")
    assert plan_steps(clips, 24.0, 0.2, (1, 0, 0)) == plan_steps(clips, 24.0, 0.2, (1, 0, 0))
    assert plan_steps(clips, 24.0, 0.2, (1, 0, 0)) != plan_steps(clips, 24.0, 0.2, (1, 0, 1))


def test_the_path_of_a_clip_in_a_message_is_its_file():
    assert Path(open_corpus("prompts-en", "test")[0].name).is_file()
