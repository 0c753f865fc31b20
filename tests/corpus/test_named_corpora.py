"""Public corpora by name, read from local folders that are laid out as the hub's datasets are; the hub itself is not asked."""

import importlib.metadata
import importlib.util
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.hub_copies import clip
from workbench.cli.app import app
from workbench.config.named_corpora import NAMED, hub_dataset, is_dataset
from workbench.core.errors import UserError
from workbench.corpus import corpus_identity, open_corpus, same_corpus, scored_clips
from workbench.corpus.download import download
from workbench.corpus.hub import Stream
from workbench.corpus.sources import meta_split
from workbench.labelling.recordings import audio_clips
from workbench.text.languages import language_code

LIBRISPEECH = (
    "train.clean.100", "train.clean.360", "train.other.500", "validation.clean", "validation.other", "test.clean", "test.other",
)  # fmt: skip


@pytest.fixture
def librispeech(copies):
    files = {
        f"all/{split}/0000.parquet": [clip(text=split.upper(), speaker_id=i, chapter_id=1, id=f"{i}-1-0000")]
        for i, split in enumerate(LIBRISPEECH)
    }
    return copies("openslr/librispeech_asr", files, {"all": {split: f"all/{split}/*.parquet" for split in LIBRISPEECH}})


@pytest.mark.parametrize(
    ("name", "split", "texts"),
    [
        ("librispeech", "train", ["TRAIN.CLEAN.100", "TRAIN.CLEAN.360", "TRAIN.OTHER.500"]),
        ("librispeech:100", "train", ["TRAIN.CLEAN.100"]),
        ("librispeech:clean", "train", ["TRAIN.CLEAN.100", "TRAIN.CLEAN.360"]),
        ("librispeech:other", "train", ["TRAIN.OTHER.500"]),
        ("librispeech", "validation", ["VALIDATION.CLEAN"]),
        ("librispeech", "test", ["TEST.CLEAN"]),
        ("librispeech:other", "validation", ["VALIDATION.OTHER"]),
        ("librispeech:other", "test", ["TEST.OTHER"]),
    ],
)
def test_librispeech_reads_the_parts_that_its_names_mean(librispeech, name, split, texts):
    found = open_corpus(name, split)
    assert [u.text for u in found] == texts
    assert {u.language for u in found} == {"en"}
    assert {u.split for u in found} == {split}
    assert found[0].speaker == str(LIBRISPEECH.index(texts[0].lower()))
    assert len(found[0].wave()) == 16000


@pytest.mark.skipif(
    importlib.metadata.version("datasets").startswith("4.0.") and importlib.util.find_spec("soundfile") is None,
    reason="datasets 4.0 asks for soundfile where it joins parts",
)
def test_several_parts_are_streamed_each_process_its_share(librispeech):
    def ids(rank, ranks):
        return [u.text for window in Stream("librispeech", 1, rank, ranks, 60.0).windows() for u in window]

    assert sorted(ids(0, 1)) == ["TRAIN.CLEAN.100", "TRAIN.CLEAN.360", "TRAIN.OTHER.500"]
    assert sorted(ids(0, 3) + ids(1, 3) + ids(2, 3)) == sorted(ids(0, 1))


def test_fleurs_is_read_from_the_converted_branch_and_its_sentence_numbers_are_made_unique(copies):
    rows = [clip(id=7, transcription="namaste", raw_transcription="Namaste!", language="Hindi") for _ in range(2)]
    copies(
        "google/fleurs", {"hi_in/test/0000.parquet": rows, "de_de/test/0000.parquet": [clip(id=1, transcription="x")]}
    )
    found = open_corpus("fleurs:hi_in", "test")
    assert [(u.id, u.text, u.language) for u in found] == [("7", "Namaste!", "hi"), ("7#1", "Namaste!", "hi")]
    assert hub_dataset("fleurs:hi_in").revision == "refs/convert/parquet"


def test_voxpopuli_and_multilingual_librispeech_by_language(copies):
    row = clip(audio_id="a", raw_text="", normalized_text="guten tag", language=1, speaker_id="None")
    copies("facebook/voxpopuli", {"de/test-00000-of-00001.parquet": [row]}, {"de": {"test": "de/test-*"}})
    (one,) = open_corpus("voxpopuli:de", "test")
    assert (one.text, one.language, one.speaker) == ("guten tag", "de", "")
    copies(
        "facebook/multilingual_librispeech",
        {"german/dev-00000-of-00001.parquet": [clip(transcript="hallo", speaker_id="3", id="3_1")]},
        {"german": {"dev": "german/dev-*"}},
    )
    (one,) = open_corpus("mls:german", "validation")
    assert (one.id, one.text, one.language, one.speaker, one.split) == ("3_1", "hallo", "de", "3", "validation")


def test_tedlium_leaves_out_what_is_not_to_be_scored(copies):
    rows = [clip(text="ignore_time_segment_in_scoring", id="a"), clip(text="so <unk> here", id="b")]
    copies("distil-whisper/tedlium", {"default/test/0000.parquet": rows})
    assert [u.text for u in open_corpus("tedlium", "test")] == ["so <unk> here"]
    with pytest.raises(UserError, match=r"tedlium: has no split 'train'; it has validation, test"):
        open_corpus("tedlium", "train")


def test_clips_outside_whispers_window_are_left_out_with_a_count_or_cut_where_the_leaderboard_cuts(copies, caplog):
    rows = [
        clip(31.0, text="long", audio_id="a"),
        clip(0.05, text="short", audio_id="b"),
        clip(text="fine", audio_id="c"),
    ]
    copies("edinburghcstr/ami", {"ihm/test-00000-of-00001.parquet": rows}, {"ihm": {"test": "ihm/test-*"}})
    with caplog.at_level(logging.WARNING, "workbench"):
        assert [u.text for u in open_corpus("ami", "test")] == ["fine"]
    assert "ami, split 'test': left out: 1 clips of more than 30 s" in caplog.text
    assert "left out: 1 clips of less than 0.1 s" in caplog.text
    copies("hf-audio/open-asr-leaderboard", {"ami/test-00000-of-00001.parquet": rows}, {"ami": {"test": "ami/test-*"}})
    long, fine = open_corpus("open-asr-leaderboard:ami", "test")
    assert (long.text, fine.text) == ("long", "fine")
    assert len(long.wave()) == 30 * 16000


def test_where_a_copy_is_read_from_is_said(librispeech, caplog):
    with caplog.at_level(logging.INFO, "workbench"):
        assert [u.text for u in scored_clips("librispeech", "test", limit=1)] == ["TEST.CLEAN"]
    assert f"openslr/librispeech_asr: read from {librispeech}" in caplog.text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("librispech", "did you mean 'librispeech'?; `workbench corpus names` lists them"),
        ("nothing-like-it", "known: ami, earnings22, fleurs"),
        ("fleurs", "say which, such as fleurs:hi_in; known: af_za, am_et"),
        ("fleurs:hi", "did you mean 'hi_in'?"),
        ("librispeech:dirty", "no part 'dirty'"),
        ("gigaspeech:xl", "has no parts; its name is 'gigaspeech'"),
        ("common_voice:en", "left the Hugging Face hub in October 2025"),
        ("common_voice:en", "https://mozilladatacollective.com"),
    ],
)
def test_an_unknown_name_says_which_there_are_and_what_to_do(source, said):
    with pytest.raises(UserError) as error:
        open_corpus(source, "test")
    assert said in str(error.value)


def test_without_the_hub_the_error_says_how_to_bring_a_copy(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("Couldn't reach 'google/fleurs' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(UserError, match=r"copy the dataset to FOLDER/google/fleurs and set WORKBENCH_DATASETS=FOLDER"):
        open_corpus("fleurs:hi_in", "test")


def test_a_gated_dataset_says_where_its_terms_are(monkeypatch):
    def fail(*_, **__):
        raise ValueError("Dataset 'somebody/speech' is a gated dataset on the Hub.")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(
        UserError, match=r"accept its terms at https://huggingface.co/datasets/somebody/speech and log in"
    ):
        open_corpus("hf:somebody/speech", "test")


def test_names_are_datasets_and_manifests_are_not():
    assert is_dataset("librispeech:other")
    assert is_dataset("common_voice:en")
    assert is_dataset("hf:x")
    assert not any(map(is_dataset, ("prompts-en", "./librispeech", "my/fleurs", "manifest.jsonl")))
    assert meta_split("librispeech") == []


def test_every_name_has_its_variant_as_its_source_and_a_language():
    for name, corpus in NAMED.items():
        for variant, dataset in corpus.variants.items():
            assert dataset.source.split(":")[0] == name
            assert hub_dataset(f"{name}:{variant}".rstrip(":")) == dataset
            assert language_code(dataset.language)
            assert dataset.splits
            assert set(dataset.splits) <= {"train", "validation", "test"}


def test_the_same_recordings_are_known_under_other_names():
    def same(one, other):
        return same_corpus(corpus_identity(one), corpus_identity(other))

    assert same("librispeech", "librispeech:other")
    assert same("librispeech", "hf:openslr/librispeech_asr:clean")
    assert same("librispeech:100", "open-asr-leaderboard:librispeech-clean")
    assert same("ami", "ami:sdm")
    assert not same("fleurs:hi_in", "fleurs:de_de")
    assert not same("librispeech", "ami")
    assert not same("librispeech", "prompts-en")
    assert same("hf:a/b:c", "hf:a/b:c")
    assert not same("hf:a/b:c", "hf:a/b:d")


def test_the_names_are_listed():
    result = CliRunner().invoke(app, ["corpus", "names"])
    assert result.exit_code == 0
    for name in (*NAMED, "prompts-en", "prompts-es", "hi_in"):
        assert name in result.stdout


def test_a_download_is_a_corpus_with_files(librispeech, tmp_path):
    output = tmp_path / "mine"
    command = [
        "corpus",
        "download",
        "librispeech",
        "-o",
        str(output),
        "--split",
        "test",
        "--split",
        "train",
        "--clips",
        "2",
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    streamed, written = open_corpus("librispeech", "train", 2), open_corpus(str(output), "train")
    assert [(u.id, u.text, u.language, u.speaker, u.split) for u in written] == [
        (u.id, u.text, u.language, u.speaker, u.split) for u in streamed
    ]
    assert [u.audio_sha256() for u in written] == [u.audio_sha256() for u in streamed]
    assert [u.text for u in open_corpus(str(output), "test")] == ["TEST.CLEAN"]
    assert CliRunner().invoke(app, command).exit_code == 0  # its own work is replaced
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes.txt'"):
        download("librispeech", output)


def test_ids_that_two_splits_share_are_told_apart_in_a_download(copies, tmp_path):
    rows = [clip(id=7, raw_transcription="x")]
    copies("google/fleurs", {f"hi_in/{split}/0000.parquet": rows for split in ("train", "validation", "test")})
    download("fleurs:hi_in", tmp_path / "hindi")
    assert [open_corpus(str(tmp_path / "hindi"), split)[0].id for split in ("train", "test")] == ["train:7", "test:7"]


def test_what_is_no_public_corpus_is_not_downloaded(tmp_path):
    with pytest.raises(UserError, match="`workbench corpus names` lists them"):
        download("prompts-en", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_needs_files_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="first run: workbench corpus download librispeech:100 -o FOLDER"):
        audio_clips(Path("librispeech:100"), tmp_path / "labels.jsonl")
    result = CliRunner().invoke(app, ["corpus", "derive", "ami", "-o", "mine"])
    assert "write it to disk with `workbench corpus download`" in str(result.exception)
