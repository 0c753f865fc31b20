"""The Whisper family on a tiny random model, against transformers' own forward passes."""

import json
import shutil

import pytest
import torch
from transformers import WhisperTokenizer, WhisperTokenizerFast

from tests.conftest import tone
from workbench.core.errors import UserError
from workbench.models.protocol import IGNORE_INDEX
from workbench.models.whisper.decoding import greedy
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.convolution import convolve
from workbench.models.whisper.forward.passes import decoder_logits, encode
from workbench.models.whisper.loading.tokens import complete_merges


@pytest.fixture
def family(tiny_checkpoint):
    return Whisper(tiny_checkpoint)


@torch.no_grad()
def test_at_30_s_the_encoder_is_transformers_own(family):
    model = family.load()
    features = family.features([tone(2.0)], 30.0)
    expected = model.model.encoder(features).last_hidden_state
    torch.testing.assert_close(encode(model, features), expected)


@torch.no_grad()
@pytest.mark.parametrize("seconds", [0.1, 0.5, 3.0, 7.0, 9.5, 29.0])
def test_the_encoder_takes_any_length_and_a_batch_is_its_clips(family, seconds):
    model = family.load()
    waves = [tone(seconds), 0.5 * tone(seconds)]
    together = encode(model, family.features(waves, seconds))
    assert together.shape[1] == -(-round(seconds * 16000) // 320)
    alone = encode(model, family.features(waves[1:], seconds))
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [2, 7, 30])
def test_a_convolution_is_torchs_own_and_its_gradients_too(stride, frames):
    layer = torch.nn.Conv1d(5, 4, 3, stride=stride, padding=1).double()
    inputs = torch.randn(3, 5, frames, dtype=torch.float64, requires_grad=True)
    for ours, torchs in zip(
        *(
            (out, *torch.autograd.grad(out.square().sum(), [inputs, *layer.parameters()]))
            for out in (convolve(layer, inputs), layer(inputs))
        ),
        strict=True,
    ):
        torch.testing.assert_close(ours, torchs)


@torch.no_grad()
def test_logits_stand_at_the_labels_and_only_there(family):
    model = family.load()
    tokens = family.tokens(["ab", "hello you"], ["en", "es"])
    states = encode(model, family.features([tone(1.0), tone(1.0)], 1.2))
    full = model(encoder_outputs=(states,), decoder_input_ids=tokens.inputs).logits
    torch.testing.assert_close(decoder_logits(model, states, tokens), full[tokens.labels != IGNORE_INDEX])
    assert (tokens.labels[0] != IGNORE_INDEX).sum() == len(" ab") + 1  # one token a byte here, and the end


def test_labels_follow_the_prompt_and_end_the_transcript(family):
    tokens = family.tokens(["a"], ["es"])
    text = family.tokenizer.convert_ids_to_tokens(tokens.inputs[0])
    assert text == ["<|startoftranscript|>", "<|es|>", "<|transcribe|>", "<|notimestamps|>", "Ġ", "a"]
    assert tokens.labels[0].tolist()[:3] == [IGNORE_INDEX] * 3
    assert tokens.labels[0, -1] == family.eos_token_id


def test_an_english_only_model_is_prompted_without_a_language(tiny_checkpoint, tmp_path):
    # OpenAI's English-only tokenizers have the tokens of all languages; the generation config says that they mean nothing
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "english")
    settings = json.loads((folder / "generation_config.json").read_text())
    del settings["lang_to_id"]
    (folder / "generation_config.json").write_text(json.dumps({**settings, "is_multilingual": False}))
    family = Whisper(folder)
    text = family.tokenizer.convert_ids_to_tokens(family.tokens(["a"], ["en"]).inputs[0])
    assert text == ["<|startoftranscript|>", "<|notimestamps|>", "Ġ", "a"]
    with pytest.raises(UserError, match="English only"):
        family.tokens(["a"], ["es"])


@torch.no_grad()
def test_greedy_with_a_cache_is_greedy_without(family):
    model = family.load()
    states = encode(model, family.features([tone(1.0), 0.1 * tone(1.0)], 1.4))
    prompt = family.prompt("en")
    found = greedy(model, states, [prompt, prompt], [9, 4], family.eos_token_id, [3], [family.eos_token_id])
    for row, limit in ((0, 9), (1, 4)):
        ids = []
        while len(ids) < limit:
            logits = model(
                encoder_outputs=(states[row : row + 1],), decoder_input_ids=torch.tensor([prompt + ids])
            ).logits[0, -1]
            logits[3] = -torch.inf
            if not ids:
                logits[family.eos_token_id] = -torch.inf
            token = int(logits.argmax())
            if token == family.eos_token_id:
                break
            ids.append(token)
        assert found[row] == ids


def test_tokens_are_capped_by_duration_and_context(family):
    assert family.token_limit(0.5, "en") == 16
    assert family.token_limit(10.0, "en") == 92
    assert family.token_limit(30.0, "en") == 124
    # scripts that are spelled in bytes: Georgian needs up to 39 tokens a second
    assert family.token_limit(0.5, "ka") == 36
    assert family.token_limit(2.0, "ka") == 108


def test_unknown_languages_and_long_transcripts_are_named(family):
    with pytest.raises(UserError, match="language 'xx'"):
        family.tokens(["a"], ["xx"])
    with pytest.raises(UserError, match="has 201 tokens"):
        family.tokens(["a" * 200], ["en"])


def test_another_model_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(UserError, match="expected a 'whisper' checkpoint"):
        Whisper(tmp_path)


def test_lost_merges_of_two_bytes_are_put_back_in_their_order():
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}
    whole = [["a", "b"], ["b", "c"], ["ab", "c"]]
    for lost in (0, 1):
        merges = [m for i, m in enumerate(whole) if i != lost]
        assert complete_merges({"model": {"vocab": vocabulary, "merges": merges}}, "x")["model"]["merges"] == whole
    with pytest.raises(UserError, match="no merge makes the token 'abc'"):
        complete_merges({"model": {"vocab": vocabulary, "merges": whole[:2]}}, "x")


def test_slow_and_fast_tokenizers_of_a_saved_folder_agree(tiny_checkpoint):
    for text in (" hello", "über 25 %", "Ñandú"):
        ids = [
            c.from_pretrained(tiny_checkpoint)(text, add_special_tokens=False).input_ids
            for c in (WhisperTokenizer, WhisperTokenizerFast)
        ]
        assert ids[0] == ids[1]
