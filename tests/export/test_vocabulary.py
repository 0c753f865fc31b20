"""A smaller vocabulary: the same tokens for the same text, the same logits, a bundle that every client reads."""

import json

import numpy as np
import pytest
import torch

from export.assembly.build import export_bundle
from export.bundle.manifest import open_manifest, size_mb
from export.bundle.vocabulary import choose_tokens, prune, prune_like, vocabulary_coverage
from export.edge import Recognizer
from export.verification.clients import unavailable_reason
from export.verification.verify import verify_bundle
from tests.conftest import SPECIALS, tone
from workbench.core.errors import UserError
from workbench.core.files import read_json
from workbench.corpus import open_corpus
from workbench.models.whisper.family import Whisper

TEXTS = [u.text for u in open_corpus("prompts-en", "train")]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    """The tiny student with a byte-pair tokenizer learnt on the built-in transcripts."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import WhisperForConditionalGeneration

    from workbench.models.whisper.loading.tokens import save_tokenizer

    folder = tmp_path_factory.mktemp("bpe") / "student"
    folder.mkdir()
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator([f" {text}" for text in TEXTS], trainer)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.save(str(folder / "source.json"))
    model = WhisperForConditionalGeneration.from_pretrained(tiny_checkpoint)
    end = tokenizer.token_to_id("<|endoftext|>")
    size = end + len(SPECIALS) + 20  # and timestamps that the tokenizer does not name, as in Whisper
    torch.manual_seed(0)
    model.resize_token_embeddings(size, mean_resizing=False)
    model.model.decoder.embed_tokens.weight.data.normal_(0, 0.3)
    model.tie_weights()
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = settings.bos_token_id = settings.eos_token_id = end
        settings.decoder_start_token_id = end + 1
    model.generation_config.suppress_tokens = [3, 400, *range(end + 1, size)]  # a random model would write them
    model.generation_config.begin_suppress_tokens = [tokenizer.token_to_id("Ġ"), end]
    save_tokenizer(folder / "source.json", model, folder)
    (folder / "source.json").unlink()
    model.save_pretrained(folder)
    (folder / "workbench.json").write_text(json.dumps({"schema": 1, "length": "true", "margin_seconds": 0.4}))
    return folder


@pytest.fixture(scope="module")
def pruned(checkpoint, tmp_path_factory):
    """Three kept texts, and the checkpoint that knows their tokens."""
    folder = tmp_path_factory.mktemp("pruned")
    domain = folder / "domain.txt"
    domain.write_text("\n".join(TEXTS[:20]) + "\n\n", encoding="utf-8")
    kept = choose_tokens(f"corpus:{domain}", Whisper(checkpoint))
    (folder / "student").mkdir()
    return kept, prune(checkpoint, kept, folder / "student")


def test_texts_of_the_domain_are_tokenized_alike_and_all_others_still_can_be(checkpoint, pruned):
    kept, folder = pruned
    whole, small = Whisper(checkpoint).tokenizer, Whisper(folder).tokenizer
    assert len(kept) < 600
    for text in TEXTS[:20]:
        ids = whole(f" {text}", add_special_tokens=False).input_ids
        assert [kept[i] for i in small(f" {text}", add_special_tokens=False).input_ids] == ids
    for text in (*TEXTS[20:60], "naïve — 音声 🎧", "  two  spaces"):
        assert small.decode(small(text, add_special_tokens=False).input_ids) == text
    assert whole.decode([kept[i] for i in small("press", add_special_tokens=False).input_ids]) == "press"


def test_specials_keep_their_order_and_every_id_is_renumbered(checkpoint, pruned):
    kept, folder = pruned
    whole, small = Whisper(checkpoint), Whisper(folder)
    assert small.config.vocab_size == len(kept)
    places = {token: small.tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}
    assert list(places.values()) == list(range(places["<|endoftext|>"], places["<|endoftext|>"] + len(SPECIALS)))
    assert len(kept) - places["<|notimestamps|>"] == 21
    assert kept[small.eos_token_id] == whole.eos_token_id
    assert [kept[i] for i in small.suppress_tokens] == [i for i in whole.suppress_tokens if i in kept]
    assert [kept[i] for i in small.begin_suppress_tokens] == whole.begin_suppress_tokens
    generation = small.generation
    assert generation.lang_to_id == {t: places[t] for t in ("<|en|>", "<|es|>")}
    assert generation.task_to_id == {t: places[f"<|{t}|>"] for t in ("transcribe", "translate")}
    assert generation.no_timestamps_token_id == places["<|notimestamps|>"]
    assert small.config.decoder_start_token_id == places["<|startoftranscript|>"]
    slow = read_json(folder / "vocab.json", "tokens")
    assert slow == {t: i for t, i in small.tokenizer.get_vocab().items() if t in slow}


@torch.no_grad()
def test_the_logits_are_those_of_the_kept_tokens(checkpoint, pruned):
    kept, folder = pruned
    whole, small = Whisper(checkpoint), Whisper(folder)
    states = torch.randn(1, 20, 32)
    tokens = whole.tokens([TEXTS[0]], ["en"])
    narrow = small.tokens([TEXTS[0]], ["en"])
    expected = whole.logits(whole.load(), states, tokens)[:, kept]
    torch.testing.assert_close(small.logits(small.load(), states, narrow), expected)


@pytest.mark.slow
def test_a_bundle_of_it_is_verified_and_says_what_is_lost(checkpoint, pruned, tmp_path):
    kept, folder = pruned
    domain = folder.parent / "domain.txt"
    bundle = export_bundle(
        checkpoint, tmp_path / "small", ["fp32", "int8"], "small", vocabulary=f"corpus:{domain}", texts=TEXTS[:40]
    )
    whole = export_bundle(checkpoint, tmp_path / "whole", ["fp32"], "whole")
    manifest = open_manifest(bundle, check=True)
    said = manifest.content["vocabulary"]
    assert (said["size"], said["of"], said["lost"]["texts"]) == (len(kept), 256 + 444 + 27, 40)
    assert 0 < said["lost"]["texts_changed"] <= 20
    assert 80 < said["lost"]["tokens_kept_percent"] < 100
    assert size_mb(manifest, "fp32") < size_mb(open_manifest(whole), "fp32")
    clips = [u for u in open_corpus("prompts-en", "validation") if u.seconds < 3][:3]
    clients = [name for name in ("edge", "optimum") if not unavailable_reason(name)]  # the latter is fetched
    found = verify_bundle(bundle, checkpoint, clips, "prompts-en", clients, 2)
    assert [c["tokens_equal"] for c in found["clients"] if c["precision"] == "fp32"] == ["3 of 3"] * len(clients)
    before = (bundle / "bundle.json").stat().st_mtime_ns
    assert export_bundle(checkpoint, bundle, ["fp32", "int8"], "small", vocabulary=f"corpus:{domain}") == bundle
    assert (bundle / "bundle.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another vocabulary"):
        export_bundle(checkpoint, bundle, ["fp32", "int8"], "small", vocabulary="600")


def test_a_bundles_checkpoint_can_be_made_again(checkpoint, pruned, tmp_path):
    _, folder = pruned
    (tmp_path / "again").mkdir()
    again = prune_like(checkpoint, folder, tmp_path / "again")
    for name in ("tokenizer.json", "config.json", "generation_config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.slow
def test_a_number_keeps_the_first_tokens_and_a_language_its_words(checkpoint):
    family = Whisper(checkpoint)
    kept = choose_tokens("500", family)
    assert set(range(500)) <= set(kept)
    assert len(kept) == 500 + 27
    english, few = choose_tokens("en", family), choose_tokens("en:400", family)
    assert set(few) < set(english)
    assert 380 < len(few) <= 400
    assert vocabulary_coverage(english, family, TEXTS)["tokens_kept_percent"] > 90
    assert choose_tokens("500+en:400", family) == sorted(set(kept) | set(few))
    spanish = choose_tokens("es", family)
    assert (
        vocabulary_coverage(spanish, family, TEXTS)["tokens_kept_percent"]
        < vocabulary_coverage(english, family, TEXTS)["tokens_kept_percent"]
    )


def test_a_student_that_was_trained_narrow_keeps_what_it_knows(checkpoint, tmp_path):
    import shutil

    folder = shutil.copytree(checkpoint, tmp_path / "narrow")
    settings = read_json(folder / "generation_config.json", "settings")
    settings["suppress_tokens"] = list(range(300, 500))
    (folder / "generation_config.json").write_text(json.dumps(settings))
    kept = choose_tokens("trained", Whisper(folder))
    assert set(range(500, 700)) <= set(kept)  # a few of the others are parts of these
    assert len(kept) < 700
    bundle = export_bundle(folder, tmp_path / "bundle", ["fp32"], vocabulary="trained")
    out = Recognizer(bundle, vad=False).transcribe(np.asarray(tone(1.0)))
    assert out.tokens == export_tokens(folder, kept, tmp_path)


def export_tokens(folder, kept, tmp_path):
    """What the whole bundle of a narrow student writes, by the small one's numbers."""
    whole = export_bundle(folder, tmp_path / "whole", ["fp32"])
    place = {token: i for i, token in enumerate(kept)}
    return tuple(place[i] for i in Recognizer(whole, vad=False).transcribe(np.asarray(tone(1.0))).tokens)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("eng", "did you mean 'en'"),
        ("en:many", "'many' is not a number"),
        ("en:100", "fewer than the 283"),
        ("corpus:none.txt", "cannot be read"),
        ("trained", "trained with its whole vocabulary"),
    ],
)
def test_a_choice_that_cannot_be_had_is_one_line(checkpoint, choice, said):
    with pytest.raises(UserError, match=said):
        choose_tokens(choice, Whisper(checkpoint))


def test_a_teacher_of_fewer_tokens_has_a_student_of_as_many(checkpoint, recipe, cache, tmp_path):
    from typer.testing import CliRunner

    from workbench.cli.app import app
    from workbench.training.trainer import distill

    small = tmp_path / "small"
    command = ["prune", str(checkpoint), "-o", str(small), "--vocabulary", "500"]
    assert CliRunner().invoke(app, command).exit_code == 0
    student = distill(recipe(teacher=str(small)))
    assert Whisper(student).config.vocab_size == Whisper(small).config.vocab_size == 527
    with pytest.raises(UserError, match="exists"):
        CliRunner().invoke(app, command, catch_exceptions=False, standalone_mode=False)
