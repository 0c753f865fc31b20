"""wav2vec2, HuBERT, WavLM and Parakeet with a CTC head: what transformers computes, whatever else is in the batch; their vocabulary; their layers."""

import json

import numpy as np
import pytest
import torch

from tests.conftest import tone
from tests.models.ctc_checkpoints import (
    KINDS,
    NAMES,
    PIECES,
    extractor_of,
    write_checkpoint,
    write_sentencepiece,
    write_tokens,
)
from workbench.config.sections import StudentRecipe
from workbench.core.errors import UserError
from workbench.models import open_family
from workbench.models.ctc.tokens import CtcTokens, all_bytes, bpe_tokens_of, characters_of, collapse
from workbench.models.ctc.waves import samples_of
from workbench.models.states import encode_waves

CPU = torch.device("cpu")


@pytest.fixture(params=KINDS, scope="module")
def checkpoint(request, tmp_path_factory):
    """One checkpoint of each kind."""
    return write_checkpoint(tmp_path_factory.mktemp("ctc") / request.param, request.param)


def waves():
    noise = np.random.default_rng(0)
    return [(tone(s) * noise.normal(1, 0.5, round(s * 16_000))).astype(np.float32) for s in (0.71, 1.3, 0.4)]


def logits_of(family, model, batch, seconds):
    states, mask = encode_waves(family, model, batch, seconds, CPU)
    flat = family.logits(model, states, family.tokens([""] * len(batch), ["en"] * len(batch)), attention_mask=mask)
    return list(torch.split(flat, mask.sum(1).tolist()))


@torch.no_grad()
def test_a_clip_gives_what_transformers_gives_it_by_itself(checkpoint):
    from transformers import AutoModelForCTC

    family = open_family(checkpoint)
    model, stock = family.load(), AutoModelForCTC.from_pretrained(checkpoint).eval()
    for wave in waves():
        if family.reads_waves:
            extract = extractor_of(checkpoint)
            expected = stock(extract(wave, sampling_rate=16_000, return_tensors="pt")["input_values"]).logits[0]
        else:  # a test of their own compares the features
            mels = family.features([wave], len(wave) / 16_000)[:, :-1].transpose(1, 2)
            expected = stock(mels, torch.ones(mels.shape[:2], dtype=torch.bool)).logits[0]
        (found,) = logits_of(family, model, [wave], len(wave) / 16_000)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("silence", [0.0, 0.3])
def test_padding_changes_nothing(checkpoint, silence):
    family = open_family(checkpoint)
    model, batch = family.load(), waves()
    together = logits_of(family, model, batch, max(map(len, batch)) / 16_000 + silence)
    for wave, found in zip(batch, together, strict=True):
        (alone,) = logits_of(family, model, [wave], len(wave) / 16_000 + silence)
        assert len(found) == len(alone)
        torch.testing.assert_close(found, alone, atol=2e-4, rtol=1e-3)
    texts = family.decode(model, *_states(family, model, batch, silence))
    assert texts == [family.decode(model, *_states(family, model, [wave], silence))[0] for wave in batch]
    assert any(texts)


def _states(family, model, batch, silence):
    states, mask = encode_waves(family, model, batch, max(map(len, batch)) / 16_000 + silence, CPU)
    return states, [len(wave) / 16_000 for wave in batch], ["en"] * len(batch), mask


def test_a_wave_of_most_samples_has_that_many_frames(checkpoint):
    family = open_family(checkpoint)
    for frames in (1, 2, 50, 1499):
        most = family.samples(frames)
        assert (family.positions(most), family.positions(most + 1)) == (frames, frames + 1)
    if family.reads_waves:
        assert samples_of(family.config, 49) >= 16_000
    assert family.samples_per_position == (320 if family.reads_waves else 1280)


@torch.no_grad()
def test_a_student_of_all_layers_is_the_model_and_one_of_some_has_those(checkpoint):
    family = open_family(checkpoint)
    model, batch = family.load(), waves()
    same = family.build_student(model, StudentRecipe())
    expected = logits_of(family, model, batch, 1.5)
    for ours, theirs in zip(logits_of(family, same, batch, 1.5), expected, strict=True):
        assert torch.equal(ours, theirs)
    student = family.build_student(model, StudentRecipe(encoder_layers=[1, 2]))
    layers = [m.encoder.layers for m in (getattr(x, getattr(x, "base_model_prefix", ""), x) for x in (student, model))]
    config = getattr(student.config, "encoder_config", student.config)
    assert len(layers[0]) == config.num_hidden_layers == 2
    own, theirs = layers[0][0].state_dict(), layers[1][1].state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    assert all(torch.isfinite(x).all() for x in logits_of(family, student, batch, 1.5))
    with pytest.raises(UserError, match=r"student\.encoder_layers is 4; the teacher has 3 layers"):
        family.build_student(model, StudentRecipe(encoder_layers=4))


def test_a_saved_student_is_what_transformers_loads(checkpoint, tmp_path):
    from transformers import AutoModelForCTC, AutoTokenizer

    from workbench.models.students import save_student

    family = open_family(checkpoint)
    student = family.build_student(family.load(), StudentRecipe(encoder_layers=2))
    save_student(student, family, tmp_path / "student", 0.25)
    again = open_family(tmp_path / "student")
    assert (again.silence, again.vocabulary_size) == (0.25, len(NAMES))
    with torch.no_grad():
        features = family.features(waves()[:1], 1.0)
        expected = student.lm_head(family.encode(student, features))
        assert torch.equal(again.load().lm_head(again.encode(again.load(), features)), expected)
        stock = AutoModelForCTC.from_pretrained(tmp_path / "student").eval()
        head = next(
            value for name, value in stock.state_dict().items() if name in ("lm_head.weight", "ctc_head.weight")
        )
        torch.testing.assert_close(head.flatten(1), student.lm_head.weight)
    text = again.ctc_tokens.readable("hi There")
    assert AutoTokenizer.from_pretrained(tmp_path / "student")(text).input_ids == again.ctc_tokens.encode("hi There")


def test_activation_checkpointing_changes_no_gradient(checkpoint):
    family = open_family(checkpoint)
    found = []
    for checkpointing in (False, True):
        model = family.load()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(family.part_of(name) != "constant")
        mask = family.attention_mask([len(w) for w in waves()], 1.4)
        states = family.encode(model, family.features(waves(), 1.4), mask, checkpointing)
        (states * mask[..., None]).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert not any(module.training for module in model.modules())
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 20
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_parts(checkpoint):
    family = open_family(checkpoint)
    names = [name for name, _ in family.load().named_parameters()]
    parts = {name: family.part_of(name) for name in names}
    assert {name for name, part in parts.items() if part == "decoder"} == {"lm_head.weight", "lm_head.bias"}
    assert all(("feature_extractor" in n or "masked_spec" in n) == (p == "constant") for n, p in parts.items())


# --- vocabularies


def test_sentencepiece_tokens(tmp_path):
    from transformers import AutoTokenizer

    family = open_family(write_checkpoint(tmp_path / "c", "parakeet"))
    tokens, stock = family.ctc_tokens, AutoTokenizer.from_pretrained(tmp_path / "c")
    assert (tokens.blank, tokens.case, tokens.pieces[0], tokens.pieces[1]) == (31, "lower", b"", b" ")
    ids = tokens.encode("  The cat’s—hat, THEN.  ")
    assert [PIECES[i] for i in ids] == ["▁t", "he", "▁", *"cat's", "▁", *"hat", "▁t", "he", "n"]
    assert ids == stock("the cat's hat then").input_ids
    assert tokens.decode(ids) == "the cat's hat then"
    assert [tokens.encode(text) for text in ("42", "42 17", "—", "")] == [[]] * 4
    assert tokens.decode(tokens.encode("42 rooms, 7 now 9")) == "rooms now"
    assert tokens.encode("rooms now") == tokens.encode("42 rooms, 7 now 9")
    assert stock.decode(ids, group_tokens=False) == tokens.decode(ids)
    assert tokens.lacking("Room 42, Zoë") == ["4", "2", "ë"]
    assert [PIECES[i] for i in tokens.encode("Zoë 4")] == ["▁", *"zo"]
    with pytest.raises(UserError, match="has letters that the model's vocabulary lacks, such as 'п'"):
        family.tokens(["Привет"], ["ru"])


def test_sentencepiece_with_case_punctuation_and_bytes(tmp_path):
    folder = write_checkpoint(tmp_path / "c", "parakeet")
    write_sentencepiece(folder, ["<unk>", "▁", *"abcdefghijklmnopqrstuvwx", ",", "-", "T", "▁t", "he", "<pad>"])
    tokens = open_family(folder).ctc_tokens
    assert tokens.case == "keep"
    assert tokens.readable("The cat-hat, (no) more…") == "The cat-hat, no more"


def test_sentencepiece_bytes_spell_any_text():
    tokens = CtcTokens(["<pad>", "a", *(f"<0x{b:02X}>" for b in range(256))], [b"", b"a", *(bytes([b]) for b in range(256))], 0, "sentencepiece")  # fmt: skip
    assert tokens.lacking("ß4") == []
    assert tokens.readable("a (ß)…") == "a (ß)…"


def test_upper_case_characters_and_words(tmp_path):
    family = open_family(write_checkpoint(tmp_path / "c", "wav2vec2"))
    tokens = family.ctc_tokens
    assert (tokens.blank, tokens.case, tokens.pieces[0], tokens.pieces[4]) == (0, "upper", b"", b" ")
    ids = tokens.encode("  Don’t—stop, U.S.  ")
    assert [NAMES[i] for i in ids] == list("DON'T|STOP|US")
    assert tokens.decode(ids) == "DON'T STOP US"
    assert tokens.encode("42 rooms, 7 now 9") == tokens.encode("rooms now")
    assert tokens.encode("42 17") == []
    assert tokens.lacking("Room 42, Zoë") == ["4", "2", "Ë"]
    labels = family.tokens(["hi", "a"], ["en", "de"]).labels
    assert labels.tolist() == [[NAMES.index("H"), NAMES.index("I")], [NAMES.index("A"), -100]]
    with pytest.raises(UserError, match="has letters that the model's vocabulary lacks, such as 'П'"):
        family.tokens(["Привет"], ["ru"])


def test_lower_case_and_a_blank_at_the_end(tmp_path):
    names = ["|", *"abc'", "[UNK]", "[PAD]"]
    folder = write_checkpoint(tmp_path / "c", "wav2vec2", vocab_size=9, pad_token_id=6)
    write_tokens(folder, names, pad_token={"content": "[PAD]"}, unk_token="[UNK]", do_lower_case=False)  # noqa: S106
    (folder / "added_tokens.json").write_text(json.dumps({"<s>": 7, "</s>": 8}))
    tokens = open_family(folder).ctc_tokens
    assert (tokens.blank, tokens.case, [p for p in tokens.pieces if p]) == (6, "lower", [b" ", b"a", b"b", b"c", b"'"])
    assert tokens.encode("A cab") == [1, 0, 3, 1, 2]
    assert collapse(torch.tensor([6, 1, 1, 6, 1, 3, 3, 6]), 6) == [1, 1, 3]


def test_characters_of_a_corpus():
    tokens = characters_of(["Ring 7 times!", "Año, it's"])
    assert "".join(p.decode() for p in tokens.pieces) == " '7aegimnorstñ"
    assert tokens.decode(tokens.encode("It's RING, 7 año")) == "it's ring 7 año"


def test_bytes_write_any_text():
    tokens = all_bytes()
    text = "Łódź — “quoted” 漢字."
    assert tokens.decode(tokens.encode(f" {text} ")) == text
    assert len(tokens.pieces) == 257
    assert tokens.decode(tokens.encode("漢")[:2]) == "\ufffd"


def test_byte_pairs_that_were_not_kept_are_spelled(tiny_checkpoint):
    tokens = bpe_tokens_of(tiny_checkpoint, ["hello there"])
    assert len(tokens.pieces) == 257  # the tiny tokenizer has bytes alone
    assert tokens.decode(tokens.encode("Añ 漢!")) == "Añ 漢!"


@pytest.mark.slow
def test_whispers_own_byte_pairs():
    from workbench.models.resolve import resolve_teacher

    folder = resolve_teacher("whisper-base")
    tokens = bpe_tokens_of(folder, ["Please say a name, or press one."])
    assert 257 < len(tokens.pieces) < 300
    assert len(tokens.encode("Please say a name.")) == 5
    assert (
        tokens.decode(tokens.encode("Please say antidisestablishment — 漢")) == "Please say antidisestablishment — 漢"
    )


# --- what is refused


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"pad_token_id": 3}, r"vocab\.json has '<pad>' as 0, config\.json's pad_token_id, the blank, is 3"),
        ("config.json", {"adapter_attn_dim": 16}, "only wav2vec2 models with do_stable_layer_norm, such as MMS"),
        ("config.json", {"add_adapter": True}, "add_adapter is true"),
        ("config.json", {"architectures": ["Wav2Vec2ForPreTraining"]}, r"expected \['Wav2Vec2ForCTC'\]: it has no CTC head"),
        ("config.json", {"hidden_size": 10**9}, "hidden_size is 1000000000; expected a whole number from 1 to 8,192"),
        ("config.json", {"hidden_size": 48}, r"weights and config\.json do not match"),
        ("config.json", {"auto_map": {"AutoModel": "evil.py"}}, "names code to load"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "sampling_rate is 8000; expected 16000"),
        ("tokenizer_config.json", {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}, "expected Wav2Vec2CTCTokenizer"),
        ("vocab.json", {"Z": 99}, "token 'Z' has the id 99, the model only 32 tokens"),
        ("vocab.json", {"Z": "1"}, "token 'Z' has the id '1'"),
    ],
    ids=str,
)  # fmt: skip
def test_checkpoints_that_cannot_be_used_say_why(tmp_path, file, changes, message):
    folder = write_checkpoint(tmp_path / "c", "wav2vec2")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message) as caught:
        open_family(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"pad_token_id": 3}, "tokenizer_config.json's pad_token, '<pad>', is 31, config.json's pad_token_id, the blank, is 3"),
        ("config.json", {"architectures": ["ParakeetForTDT"]}, r"expected \['ParakeetForCTC'\]: it has no CTC head"),
        ("config.json", {"vocab_size": 30}, "pad_token_id, the blank, is 31; expected a token below 30"),
        ("config.json", {"encoder_config": 3}, "encoder_config is 3; expected the encoder's settings"),
        ("config.json", {"encoder_config.hidden_size": 33}, "encoder_config.hidden_size is 33; expected an even number that num_attention_heads, 2, divides"),
        ("config.json", {"encoder_config.subsampling_factor": 6}, "subsampling_factor is 6; expected a power of two from 2 to 64"),
        ("config.json", {"encoder_config.subsampling_conv_stride": 1}, "subsampling_conv_stride is 1; expected 2"),
        ("config.json", {"encoder_config.conv_kernel_size": 8}, "conv_kernel_size is 8; expected an odd number"),
        ("config.json", {"encoder_config.num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected a whole number from 1 to 128"),
        ("config.json", {"encoder_config.intermediate_size": 64}, r"weights and config\.json do not match"),
        ("config.json", {"encoder_config.num_mel_bins": 81}, "encoder_config.num_mel_bins is 81; expected a multiple of subsampling_factor, 8"),
        ("config.json", {"encoder_config.hidden_size": "a"}, "encoder_config.hidden_size is 'a'; expected a whole number"),
        ("tokenizer.json", {"model.dropout": 0.9}, "model.dropout is 0.9; it would cut a text otherwise each time"),
        ("tokenizer.json", {"model.unk_token": "zzz"}, "tokenizer.json: cannot be loaded"),
        ("preprocessor_config.json", {"n_fft": 400}, "n_fft is 400; expected 512"),
        ("preprocessor_config.json", {"preemphasis": "much"}, "preemphasis is much; expected a number from 0 to 1"),
        ("tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer"}, "expected ParakeetTokenizer"),
    ],
    ids=str,
)  # fmt: skip
def test_parakeets_that_cannot_be_used_say_why(tmp_path, file, changes, message):
    folder = write_checkpoint(tmp_path / "c", "parakeet")
    content = json.loads((folder / file).read_text())
    for key, value in changes.items():
        outer, _, inner = key.partition(".")
        content[outer] = content[outer] | {inner: value} if inner else value
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        open_family(folder)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_cuts_or_fills_texts_does_neither_here(tmp_path):
    folder = write_checkpoint(tmp_path / "c", "parakeet")
    expected = open_family(folder).ctc_tokens.encode("the cat")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 3, "pad_type_id": 0, "pad_token": "a"}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert open_family(folder).ctc_tokens.encode("the cat") == expected


def test_a_lower_case_vocabulary_with_bytes_is_lower_case(tmp_path):
    folder = write_checkpoint(tmp_path / "c", "parakeet", vocab_size=32 + 256)
    write_sentencepiece(folder, [*PIECES[:-1], *(f"<0x{byte:02X}>" for byte in range(256)), "<pad>"])
    tokens = open_family(folder).ctc_tokens
    assert tokens.case == "lower"
    assert tokens.pieces[tokens.names.index("<0x61>")] == b""  # "a" has a token
    assert tokens.lacking("42 ß") == []
    assert tokens.decode(tokens.encode("The cat")) == "the cat"


def test_a_parakeet_without_its_tokenizer(tmp_path):
    folder = write_checkpoint(tmp_path / "c", "parakeet")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"lacks tokenizer\.json, the tokens that it writes"):
        open_family(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"lacks preprocessor_config\.json"):
        open_family(folder)


@torch.no_grad()
def test_parakeets_features_are_transformers_own(tmp_path):
    family = open_family(write_checkpoint(tmp_path / "c", "parakeet"))
    extract = extractor_of(tmp_path / "c")
    batch = waves()
    found = family.features(batch, max(map(len, batch)) / 16_000)
    for row, wave in zip(found, batch, strict=True):
        given = extract(wave, sampling_rate=16_000, return_tensors="pt")
        expected = given["input_features"][0, : len(wave) // 160].T
        frames = len(wave) // 160
        torch.testing.assert_close(row[:-1, :frames], expected, atol=2e-3, rtol=1e-3)
        assert row[-1].tolist() == [1.0] * frames + [0.0] * (found.shape[2] - frames)
        assert not row[:, frames:].any()
    assert not family.features([np.zeros(16_000, np.float32)], 1.0)[:, :-1].any()  # and not what rounding leaves
    assert torch.isfinite(family.features([np.ones(7, np.float32)], 7 / 16_000)).all()


def test_a_checkpoint_of_many_languages_is_read_in_the_one_it_was_saved_for(tmp_path):
    """As MMS is saved: transformers' tokenizer spells the same text."""
    from transformers import Wav2Vec2CTCTokenizer

    folder = write_checkpoint(tmp_path / "c", "mms")
    family = open_family(folder)
    ids = family.ctc_tokens.encode("Press nine")
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    assert tokenizer.decode(ids, group_tokens=False) == "PRESS NINE"
    assert ids == tokenizer("PRESS NINE").input_ids
    student = family.build_student(family.load(), StudentRecipe(encoder_layers=[2]))
    expected = family.load().wav2vec2.encoder.layers[2].adapter_layer.linear_1.weight
    torch.testing.assert_close(student.wav2vec2.encoder.layers[0].adapter_layer.linear_1.weight, expected)


def test_vocabularies_of_many_languages_and_missing_files(tmp_path):
    folder = write_checkpoint(tmp_path / "c", "hubert")
    (folder / "vocab.json").write_text(json.dumps({"eng": {"<pad>": 0, "a": 1}, "deu": {"<pad>": 0}}))
    with pytest.raises(
        UserError, match=r"vocabularies of 2 languages, and tokenizer_config\.json's target_lang is None"
    ):
        open_family(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"target_lang": "fra"}))
    with pytest.raises(UserError, match="target_lang is 'fra'; save the checkpoint for one language"):
        open_family(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(UserError, match=r"lacks vocab\.json"):
        open_family(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"lacks preprocessor_config\.json"):
        open_family(folder)
