"""The graphs of a bundle: padding that is cut off, tokens that are not written, what each runtime asks for."""

import base64
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export.graphs.encoder import encoder_graph, frontend_graph
from export.graphs.merged import merged_graph
from export.graphs.names import DECODER, ENCODER, SHERPA, STEP
from export.graphs.padding import trim_or_pad_silence
from export.graphs.step import SUPPRESSED_LOGIT
from export.verification.clients import known_clients, unavailable_reason
from export.verification.verify import verify_bundle
from tests.conftest import tone
from workbench.config.recipe import StudentRecipe
from workbench.corpus import open_corpus
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.log_mel import LogMel
from workbench.models.whisper.forward.passes import encode
from workbench.models.whisper.students import build_student


def features(*seconds, length):
    """Log-mel features of tones of some seconds, with digital silence up to a length."""
    waves = torch.zeros(len(seconds), round(length * 16000))
    for row, s in zip(waves, seconds, strict=True):
        row[: round(s * 16000)] = torch.from_numpy(tone(s))
    return LogMel(80)(waves)


@pytest.mark.parametrize("length", [2.4, 5.0, 30.0])
def test_silence_after_a_clip_is_cut_down_to_a_margin(length):
    heard = trim_or_pad_silence(features(2.0, length=length), 40)
    assert 240 <= heard.shape[2] <= 244
    torch.testing.assert_close(heard[:, :, :238], features(2.0, length=2.4)[:, :, :238])


def test_zeros_that_a_runtime_pads_with_are_silence():
    clip = features(2.0, length=2.4)
    padded = torch.nn.functional.pad(clip, (0, 1000))
    heard, whole = trim_or_pad_silence(padded, 40), trim_or_pad_silence(features(2.0, length=12.4), 40)
    torch.testing.assert_close(heard[:, :, :240], whole[:, :, :240])
    filled = trim_or_pad_silence(padded, None)
    assert filled.shape[2] == 3000
    assert filled[0, :, 500:].unique().tolist() == [clip.amin().item()]


def test_of_several_clips_the_longest_decides_and_silence_keeps_the_margin():
    assert trim_or_pad_silence(features(1.0, 3.0, length=10), 40).shape[2] == pytest.approx(340, abs=4)
    assert trim_or_pad_silence(features(1.0, length=2.0) * 0 - 1.5, 40).shape == (1, 80, 40)
    assert trim_or_pad_silence(torch.zeros(1, 80, 500), 40).unique().tolist() == [-1.5]


def test_a_clip_without_silence_at_its_end_stays_as_it_is():
    noise = torch.randn(1, 80, 300)
    torch.testing.assert_close(trim_or_pad_silence(noise, 40), noise)


def test_the_encoders_graph_cuts_padding_off(exported):
    session = ort.InferenceSession(exported / "onnx" / ENCODER)
    short, long = (session.run(None, {"input_features": features(2.0, length=s).numpy()}) for s in (2.4, 30.0))
    assert [o.name for o in session.get_outputs()] == ["n_layer_cross_k", "n_layer_cross_v", "last_hidden_state"]
    for a, b in zip(short, long, strict=True):
        assert abs(a.shape[-2] - b.shape[-2]) <= 2


@pytest.mark.parametrize("margin", [None, 6, 40])
@pytest.mark.parametrize("pool_after", [None, 2])
def test_the_encoders_graph_computes_what_torch_does(tiny_checkpoint, margin, pool_after):
    model = build_student(Whisper(tiny_checkpoint).load(), StudentRecipe(pool_after=pool_after)).eval()
    session = ort.InferenceSession(encoder_graph(model, margin).SerializeToString())
    silent, zeros = torch.zeros(1, 80, 500), features(1.0, length=1.5)
    zeros[:, :, 110:] = 0
    for given in (features(1.3, 0.4, length=3.01), features(0.7, length=0.7), zeros, silent, torch.randn(2, 80, 77)):
        with torch.no_grad():
            states = encode(model, trim_or_pad_silence(given, margin))
        keys, values, found = session.run(None, {"input_features": given.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), states, atol=2e-5, rtol=1e-4)
        for i, layer in enumerate(model.model.decoder.layers):
            for projection, kept in ((layer.encoder_attn.k_proj, keys), (layer.encoder_attn.v_proj, values)):
                torch.testing.assert_close(torch.from_numpy(kept[i]), projection(states).detach(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("mels", [80, 128])
def test_the_frontends_graph_computes_what_torch_does(mels):
    session = ort.InferenceSession(frontend_graph(mels).SerializeToString())
    waves = np.stack(
        [tone(1.23), np.resize(open_corpus("prompts-en", "validation")[0].wave(), len(tone(1.23))), 0 * tone(1.23)]
    )
    for given in (waves, waves[:1, :400], waves[1:2, :1001]):
        found = session.run(None, {"waves": given})[0]
        torch.testing.assert_close(torch.from_numpy(found), LogMel(mels)(torch.from_numpy(given)), atol=1e-4, rtol=1e-4)


def test_the_merged_decoder_computes_what_torch_does(student):
    """Several clips, a prompt, one token at a time and then three at once, as beams, assistants and prompts ask of it."""
    family = Whisper(student)
    model = family.load()
    session = ort.InferenceSession(merged_graph(model, [], []).SerializeToString())
    ids, states = torch.randint(0, family.eos_token_id, (2, 9)), torch.randn(2, 11, 32)
    with torch.no_grad():
        expected = model.proj_out(model.model.decoder(ids, None, states).last_hidden_state)
    past = {
        i.name: np.zeros((2, i.shape[1], 1, i.shape[3]), np.float32) for i in session.get_inputs() if "past" in i.name
    }
    names = [o.name for o in session.get_outputs()]
    for begin, end in ((0, 4), (4, 5), (5, 6), (6, 9)):
        feed = {"input_ids": ids[:, begin:end].numpy(), "encoder_hidden_states": states.numpy(), "use_cache_branch": np.array([begin > 0])}  # fmt: skip
        out = dict(zip(names, session.run(None, feed | past), strict=True))
        torch.testing.assert_close(torch.from_numpy(out["logits"]), expected[:, begin:end], atol=1e-4, rtol=1e-4)
        for name in past:
            new = out[name.replace("past_key_values", "present")]
            if begin and ".encoder." in name:
                assert new.size == 0  # what Hugging Face's clients expect: they keep the one they have
            else:
                past[name] = new
        assert past["past_key_values.0.decoder.key"].shape[2] == end


def test_tokens_that_must_not_be_written_are_lowered_in_the_merged_decoder(exported, student):
    family = Whisper(student)
    session = ort.InferenceSession(exported / "onnx" / DECODER)
    feed = {"input_ids": np.array([[family.config.decoder_start_token_id]]), "use_cache_branch": np.array([False]),
            "encoder_hidden_states": np.random.default_rng(0).normal(size=(1, 9, 32)).astype(np.float32)}  # fmt: skip
    for past in session.get_inputs():
        if past.name.startswith("past_key_values"):
            feed[past.name] = np.zeros((1, past.shape[1], 1, past.shape[3]), np.float32)
    out = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
    lowered = np.flatnonzero(out["logits"][0, -1] < SUPPRESSED_LOGIT / 2).tolist()
    assert lowered == sorted([*family.suppress_tokens, *family.begin_suppress_tokens])
    feed["use_cache_branch"] = np.array([True])
    for past in session.get_inputs():
        if past.name.startswith("past_key_values"):
            feed[past.name] = out[past.name.replace("past_key_values", "present")]
    later = session.run(["logits"], feed)[0]
    assert np.flatnonzero(later[0, -1] < SUPPRESSED_LOGIT / 2).tolist() == family.suppress_tokens


def test_sherpa_finds_what_it_asks_for(exported, student):
    family = Whisper(student)
    said = {p.key: p.value for p in onnx.load(exported / "onnx" / ENCODER).metadata_props}
    assert {"n_mels", "n_text_layer", "n_text_ctx", "n_text_state", "n_vocab", "sot", "eot", "blank_id", "translate", "transcribe",
            "is_multilingual", "no_timestamps", "no_speech", "sot_sequence", "all_language_tokens", "all_language_codes"} <= set(said)  # fmt: skip
    assert said["all_language_codes"] == "en,es"
    assert int(said["n_vocab"]) == family.config.vocab_size
    rows = (exported / "tokens.txt").read_text().splitlines()
    assert len(rows) == family.eos_token_id
    for row in rows[::40]:
        text, number = row.split(" ")
        assert (
            base64.b64decode(text).decode("latin1") == family.tokenizer.decode([int(number)])
            or ord(base64.b64decode(text)) > 127
        )


def test_the_tied_matrix_is_stored_once_in_every_decoder(exported):
    for name in (STEP, SHERPA):
        for file in (name, name.replace(".onnx", "_quantized.onnx")):
            weights = onnx.load(exported / "onnx" / file).graph.initializer
            assert len([i for i in weights if list(i.dims) in ([263, 32], [32, 263])]) == 1, file


@pytest.mark.parametrize("name", known_clients())
def test_every_runtime_loads_the_bundle_and_transcribes(exported, student, tmp_path, name):
    if remedy := unavailable_reason(name):
        pytest.skip(f"{name} is not installed; {remedy}")
    if name == "onnx_asr":
        pytest.skip("it writes up to 448 tokens, more than the tiny model's context holds; a slow test has it")
    bundle = shutil.copytree(exported, tmp_path / "bundle")
    clips = [u for u in open_corpus("prompts-en", "validation") if u.seconds < 3][:2]
    found = verify_bundle(bundle, student, clips, "prompts-en", [name], 1)
    assert [(c["precision"], c["error"]) for c in found["clients"]] == [("fp32", None), ("int8", None)]
