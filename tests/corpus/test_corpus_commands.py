"""Corpora that are built: corrupted transcripts, names, and the real Debian packages where they can be had."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from workbench.cli.app import app
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.corpus.corrupt import corrupt, write_corrupted
from workbench.corpus.manifests import read_manifest
from workbench.corpus.prompts import build_prompts, transcripts
from workbench.corpus.sources import BUILT_IN


@pytest.fixture(scope="module")
def clean():
    return read_manifest(BUILT_IN["prompts-en"])


@pytest.mark.parametrize("how", ["exchange", "words"])
def test_a_share_of_the_training_transcripts_is_wrong_and_nothing_else(clean, how):
    wrong = corrupt(clean, 0.4, how, 1)
    training = [i for i, u in enumerate(clean) if u.split == "train"]
    changed = [i for i in training if clean[i].text != wrong[i].text]
    assert len(changed) == round(0.4 * len(training))
    assert all(a == b for a, b in zip(clean, wrong, strict=True) if a.split != "train")
    assert all(a.audio == b.audio and a.id == b.id for a, b in zip(clean, wrong, strict=True))
    if how == "exchange":
        assert sorted(clean[i].text for i in changed) == sorted(wrong[i].text for i in changed)
    else:
        assert all(len(clean[i].text.split()) == len(wrong[i].text.split()) for i in changed)
    assert [u.text for u in corrupt(clean, 0.4, how, 1)] == [u.text for u in wrong]
    assert [u.text for u in corrupt(clean, 0.4, how, 2)] != [u.text for u in wrong]


def test_the_corrupted_ids_are_recorded(clean, tmp_path):
    folder = write_corrupted(clean, 0.4, "exchange", 1, tmp_path / "noisy", BUILT_IN["prompts-en"])
    record = [json.loads(line) for line in (folder / "corrupted.jsonl").read_text().splitlines()]
    texts = {u.id: u.text for u in clean}
    noisy = {u.id: u.text for u in open_corpus(str(folder), "train")}
    assert {row["id"] for row in record} == {name for name, text in noisy.items() if texts[name] != text}
    assert all(row["was"] == texts[row["id"]] and row["text"] == noisy[row["id"]] for row in record)
    assert [u.text for u in open_corpus(str(folder), "test")] == [u.text for u in clean if u.split == "test"]


def test_the_command_corrupts_a_corpus_that_is_then_known_by_name(cache):
    found = CliRunner().invoke(
        app, ["corpus", "prompts", "--language", "en", "--corrupt", "0.4"], catch_exceptions=False
    )
    assert found.exit_code == 0
    assert len(open_corpus("prompts-en-corrupt40", "train")) == len(open_corpus("prompts-en", "train"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("prompts-es", "workbench corpus prompts --language es$"),
        ("prompts-en-corrupt40", "workbench corpus prompts --language en --corrupt 0.4"),
        ("prompts-sp", "did you mean 'prompts-"),
    ],
)
def test_a_corpus_that_is_not_built_says_how(cache, source, said):
    with pytest.raises(UserError, match=said):
        open_corpus(source, "train")


def test_bad_options_are_one_line(cache, clean):
    with pytest.raises(UserError, match="between 0 and 1"):
        corrupt(clean, 1.4, "exchange", 1)
    with pytest.raises(UserError, match="known: en, es"):
        build_prompts("xx", cache / "xx")
    with pytest.raises(UserError, match="too similar"):
        corrupt(
            [u.__class__(u.id, u.audio, "the same", u.seconds, "en", "train") for u in clean[:10]], 0.5, "exchange", 1
        )


def test_lists_with_a_byte_order_mark_and_comments():
    assert transcripts("\ufeff; comment\n\nname: text  here\n".encode()) == [("name", "text here")]


@pytest.mark.slow
def test_italian_is_built_from_debians_packages(tmp_path):
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("no apt-get and dpkg-deb here")
    try:
        folder = build_prompts("it", tmp_path / "prompts-it")
    except UserError as error:
        pytest.skip(str(error))
    by_split = {split: open_corpus(str(folder), split) for split in ("train", "validation", "test")}
    assert len(by_split["train"]) > 300
    assert {u.language for u in by_split["test"]} == {"it"}
    texts = [{u.text.lower() for u in clips} for clips in by_split.values()]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    wave = by_split["test"][0].wave()
    assert len(wave) / 16_000 == pytest.approx(by_split["test"][0].seconds, abs=0.05)
    assert (folder / "LICENSE").read_text()
