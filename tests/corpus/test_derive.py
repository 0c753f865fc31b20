"""A corpus made from another one: languages, folds and a meta split over speakers, wrong transcripts within a language."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from workbench.cli.app import app
from workbench.core.errors import UserError
from workbench.corpus import META, Utterance, open_corpus, training_set
from workbench.corpus.corrupt import corrupt
from workbench.corpus.derive import Derivation, derive, derived, fold_splits, meta_speakers
from workbench.corpus.sources import BUILT_IN, meta_split


def people(languages=("en", "es"), speakers=12, clips=5, split="train"):
    return [
        Utterance(f"{code}-{who}-{n}", b"", f"{code} {who} says {n}", 1.0, code, split, speaker=f"{code}{who}")
        for code in languages
        for who in range(speakers)
        for n in range(1 + (who * 7) % clips)
    ]


def splits_of(utterances):
    found = {}
    for u in utterances:
        found.setdefault(u.speaker, set()).add(u.split)
    assert all(len(splits) == 1 for splits in found.values())
    return {speaker: next(iter(splits)) for speaker, splits in found.items()}


def test_every_speaker_is_tested_in_one_fold_and_folds_are_of_like_size():
    clips = people(speakers=30)
    tested = Counter()
    sizes = []
    for fold in (1, 2, 3, 4, 5):
        of = splits_of(found := fold_splits(clips, 5, fold, 1))
        assert [u.id for u in found] == [u.id for u in clips]
        tested.update(speaker for speaker, split in of.items() if split == "test")
        sizes.append(sum(u.split == "test" for u in found))
        validation = sum(u.split == "validation" for u in found)
        assert 0.1 <= validation / (len(clips) - sizes[-1]) < 0.15
    assert set(tested.values()) == {1}
    assert len(tested) == 60
    assert max(sizes) - min(sizes) <= 5


def test_the_meta_split_holds_whole_speakers_of_every_language_and_no_test_clip():
    clips = people() + people(split="test", languages=("fr",))
    found = meta_speakers(clips, 0.1, 1)
    by_language = {
        code: [u for u in found if u.language == code and u.split in ("train", META)] for code in ("en", "es")
    }
    for of_language in by_language.values():
        share = sum(u.split == META for u in of_language) / len(of_language)
        assert 0.1 <= share < 0.3
    splits_of(u for u in found if u.language != "fr")
    assert {u.split for u in found if u.language == "fr"} == {"test"}
    assert [u.split for u in meta_speakers(found, 0.1, 1)] == [u.split for u in found]  # not a tenth of what is left
    alone = people(languages=("en",), speakers=1) + people(languages=("es",))
    assert {u.split for u in meta_speakers(alone, 0.1, 1) if u.language == "en"} == {"train"}
    assert [u.split for u in meta_speakers(clips, 0.1, 2)] != [u.split for u in found]


def test_transcripts_are_exchanged_within_a_language_and_never_those_of_the_meta_split():
    clips = meta_speakers(people(), 0.2, 1)
    wrong = corrupt(clips, 0.4, "exchange", 1)
    changed = [(a, b) for a, b in zip(clips, wrong, strict=True) if a.text != b.text]
    for code in ("en", "es"):
        training = [u for u in clips if u.language == code and u.split == "train"]
        assert sum(a.language == code for a, _ in changed) == round(0.4 * len(training))
    assert all(b.text.startswith(b.language) and a.split == "train" for a, b in changed)
    few = [*people(("en",), 4, 1), *people(("es",), 3, 1)]  # of three clips 40 % are one, which cannot be exchanged
    assert sum(a.text != b.text for a, b in zip(few, corrupt(few, 0.4, "exchange", 1), strict=True)) == 4


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (Derivation(languages=("en", "xx")), "--language xx"),
        (Derivation(folds=5, fold=6), "--fold 6 of --folds 5"),
        (Derivation(folds=30, fold=1), "expected more speakers than folds"),
        (Derivation(folds=5), "belong together"),
        (Derivation(fold=2), "belong together"),
        (Derivation(languages=("fr",), folds=2, fold=1), "none is left to train on"),
        (Derivation(languages=("ru",), meta=0.1), "no language has two speakers"),
        (Derivation(meta=1.0), "--meta 1: expected a share between 0 and 1"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(how, said):
    with pytest.raises(UserError, match=said):
        derived([*people(), *people(("fr",), 3, 1), *people(("ru",), 1)], how)


def test_speakers_that_are_not_known_are_refused(cache, tmp_path):
    with pytest.raises(UserError, match="field 'speaker' is missing"):
        derive(["prompts-en"], Derivation(folds=5, fold=1), tmp_path / "folds")
    assert not (tmp_path / "folds").exists()


def test_the_command_writes_a_corpus_whose_meta_split_all_but_one_train_on(cache, speech, tmp_path):
    manifest = speech()
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    named = [{**row, "client_id": f"voice {i % 3}"} for i, row in enumerate(rows)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in named))
    out = tmp_path / "derived"
    arguments = ["corpus", "derive", str(manifest), "-o", str(out), "--meta", "0.2", "--corrupt", "0.5"]
    for _ in range(2):  # the second one replaces what the first one wrote
        found = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert found.exit_code == 0, found.output
    held = meta_split(str(out))
    assert held
    assert {u.speaker for u in held}.isdisjoint({u.speaker for u in open_corpus(str(out), "train")})
    assert len(training_set(str(out), None)) == len(held) + len(open_corpus(str(out), "train"))
    assert training_set(str(out), None, meta=False) == open_corpus(str(out), "train")
    record = json.loads((out / "derived.json").read_text())
    assert (record["meta"], record["corrupt"]) == (0.2, 0.5)
    assert record["sources"][0]["manifest_sha256"]
    wrong = {json.loads(line)["id"] for line in (out / "corrupted.jsonl").read_text().splitlines()}
    assert wrong
    assert wrong.isdisjoint(u.id for u in held)
    both = derive([str(manifest), "prompts-en"], Derivation(), tmp_path / "both")
    assert {u.id.split(":")[0] for u in open_corpus(str(both), "train")} == {tmp_path.name, "prompts-en"}
    with pytest.raises(UserError, match="another one is named"):
        derive([str(manifest), str(manifest)], Derivation(), tmp_path / "twice")
    for extra in (["--corruption", "words"], ["--fold", "2"]):
        refused = CliRunner().invoke(app, ["corpus", "derive", str(manifest), "-o", str(tmp_path / "x"), *extra])
        assert refused.exit_code
    (out / "mine.txt").write_text("notes")
    with pytest.raises(UserError, match=r"mine\.txt"):
        derive([str(manifest)], Derivation(), out)
    with pytest.raises(UserError, match="input"):
        derive([str(BUILT_IN["prompts-en"])], Derivation(), BUILT_IN["prompts-en"])
