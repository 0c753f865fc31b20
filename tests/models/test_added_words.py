"""Words that were added to a tokenizer: in the runtime's vocabulary, in tokens.txt, and in what verification compares."""

import base64
import json
import shutil

import pytest

from export.assembly.build import export_bundle
from export.edge import Recognizer
from export.edge.bundle.tokens import Detokenizer
from export.verification.agreement import ReferenceTranscript, has_other_text, wer_budget, within_budget
from export.verification.clients import unavailable_reason
from export.verification.verify import verify_bundle
from tests.conftest import tone
from workbench.corpus import open_corpus
from workbench.evaluation.scoring import score
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.loading.tokens import added_words, label_ids, text_of

WORDS = ["Kubernetes", "Müller", " 東京"]


@pytest.fixture(scope="module")
def checkpoint(student, tmp_path_factory):
    """The tiny student with three more words, which it likes to write."""
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperTokenizerFast

    folder = shutil.copytree(student, tmp_path_factory.mktemp("added") / "student")
    tokenizer = WhisperTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(WORDS)
    tokenizer.save_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(1)
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[-len(WORDS) :].normal_(0, 1.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    return export_bundle(checkpoint, tmp_path_factory.mktemp("bundles") / "added", ["fp32"], "added")


def test_added_words_stand_in_a_text_as_they_are(checkpoint):
    family = Whisper(checkpoint)
    assert set(added_words(family.tokenizer).values()) == set(WORDS)
    ids = label_ids(family.tokenizer, "we run Kubernetes, Müller 東京 é")
    assert {*added_words(family.tokenizer)} <= {*ids}
    assert text_of(family.tokenizer, ids) == "we run Kubernetes, Müller 東京 é"
    assert text_of(family.tokenizer, [family.eos_token_id, *family.prompt("en")]) == ""


def test_the_runtime_knows_them(checkpoint, bundle):
    family = Whisper(checkpoint)
    recognizer = Recognizer(bundle, vad=False)
    for text in ("we run Kubernetes, Müller 東京 é", "Müller"):
        ids = label_ids(family.tokenizer, text)
        assert recognizer.detokenize([*family.prompt("es"), *ids, family.eos_token_id]) == text
    assert set(recognizer.manifest.added.values()) == set(WORDS)
    assert all(recognizer.manifest.is_text(i) for i in recognizer.manifest.added)
    assert not any(recognizer.manifest.is_text(i) for i in [*family.prompt("es"), family.eos_token_id])
    assert Detokenizer(bundle / "vocab.json")(recognizer.manifest.added) == ""  # where the vocabulary alone is read


def test_tokens_txt_has_them(bundle, checkpoint):
    rows = [line.rsplit(" ", 1) for line in (bundle / "tokens.txt").read_text().splitlines()]
    pieces = {int(i): base64.b64decode(piece) for piece, i in rows}
    for i, word in added_words(Whisper(checkpoint).tokenizer).items():
        assert pieces[i].decode() == word
    assert len(pieces) == 256 + len(WORDS)


@pytest.mark.parametrize("client", ["edge", "optimum"])
def test_they_are_verified(bundle, checkpoint, speech, client):
    if remedy := unavailable_reason(client):
        pytest.skip(remedy)
    clips = open_corpus(str(speech(3)), "validation")
    found = verify_bundle(bundle, checkpoint, clips, "speech", [client], threads=1)["clients"][0]
    if client == "edge":
        written = [Recognizer(bundle, vad=False).transcribe(u.wave(), u.language) for u in clips]
        assert any(i in Recognizer(bundle, vad=False).manifest.added for one in written for i in one.tokens)
        assert (found["passed"], found["error"], found["texts_differ"]) == (True, None, 0)
    else:  # Hugging Face's decoder reads an added word's letters as bytes: named, not passed over
        assert not found["passed"]
        assert "torch's tokens but a different text" in found["error"]
        assert "M\ufffdller" in found["error"]


def test_a_text_that_differs_where_the_tokens_are_equal_is_a_failure(bundle, checkpoint, speech, tmp_path):
    from export.bundle.manifest import record

    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    content = json.loads((damaged / "bundle.json").read_text())
    content["tokens"]["added"] = {}
    (damaged / "bundle.json").write_text(json.dumps(content))
    record(damaged)
    clips = open_corpus(str(speech(3)), "validation")
    found = verify_bundle(damaged, checkpoint, clips, "speech", ["edge"], threads=1)["clients"][0]
    assert not found["passed"]
    assert found["required"]
    assert found["texts_differ"] > 0
    assert "clips have torch's tokens but a different text, first clip" in found["error"]


def test_only_spaces_may_differ():
    assert not has_other_text({"text": "a  b ", "tokens": [1, 2]}, ReferenceTranscript("a b", [1, 2], False))
    assert has_other_text({"text": "a c", "tokens": [1, 2]}, ReferenceTranscript("a b", [1, 2], False))
    assert not has_other_text(
        {"text": "a c", "tokens": [1, 3]}, ReferenceTranscript("a b", [1, 2], False)
    )  # tokens are compared already
    assert not has_other_text({"text": "a c", "tokens": None}, ReferenceTranscript("a b", [1, 2], False))
    capped = ReferenceTranscript("a b", [1, 2], True, lambda tokens: " ".join("ab"[i - 1] for i in tokens))
    assert not has_other_text({"text": "a", "tokens": [1]}, capped)
    assert has_other_text({"text": "", "tokens": [1]}, capped)


def test_a_budget_of_no_points_is_no_points():
    assert wer_budget({"search": {"wer_above": 0.0}}) == 0
    assert wer_budget({"search": {"wer_above": None}}) == wer_budget({}) == 0.5
    reference = ["word"] * 50
    torchs, same, one_more = (score(reference, ["wrong"] * n + ["word"] * (50 - n)) for n in (3, 3, 4))
    assert within_budget(same, torchs, 0.0)
    assert not within_budget(one_more, torchs, 0.0)


def test_the_added_words_outlast_a_smaller_vocabulary(checkpoint, tmp_path):
    bundle = export_bundle(checkpoint, tmp_path / "small", ["fp32"], "small", vocabulary="260")
    recognizer = Recognizer(bundle, vad=False)
    assert set(recognizer.manifest.added.values()) == set(WORDS)
    assert recognizer.detokenize(recognizer.manifest.added) == "".join(WORDS)
    assert recognizer.transcribe(tone(1.0)).text is not None
