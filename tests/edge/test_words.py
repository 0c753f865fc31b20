"""When words were said: the path, the words, the heads that are chosen, and the graph that tells where they look."""

import itertools
import json

import numpy as np
import pytest
import torch

from export.assembly.alignment import Recording, _first_rows, choose_heads, recordings
from export.assembly.build import export_bundle
from export.edge import BundleError, Recognizer, Stream, Transcript, format_segments
from export.edge.after_loop import join_transcripts
from export.edge.decoding.decoder import DecoderSession
from export.edge.vad import FRAME, SpeechSpan
from export.edge.words import dtw_path, grouped, timed_words, token_times
from tests.conftest import of_an_earlier_version, tone
from workbench.corpus import open_corpus
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.forward.passes import encode


@pytest.mark.parametrize("seed", range(8))
def test_the_path_is_the_cheapest_of_all(seed):
    cost = np.random.default_rng(seed).normal(size=(3, 5))

    def paths(i, j):
        if (i, j) == (2, 4):
            yield [(i, j)]
        for a, b in ((i + 1, j), (i, j + 1), (i + 1, j + 1)):
            if a < 3 and b < 5:
                yield from ([(i, j), *rest] for rest in paths(a, b))

    best = min(paths(0, 0), key=lambda p: sum(cost[at] for at in p))
    starts = [min(j for i, j in best if i == row) for row in range(3)]
    assert dtw_path(cost).tolist() == starts


def test_words_are_timed_where_the_decoder_looked():
    attention = np.full((4, 40), 0.001, np.float32)  # three tokens and the end
    for row, place in enumerate((2, 14, 26, 38)):
        attention[row, place - 2 : place + 3] = 0.2
    spelt = {1: b" one", 2: b" tw", 3: b"o."}
    words = timed_words(attention, [1, 2, 3], spelt.get, "en", 4.0)
    assert [w.text for w in words] == ["one", "two."]
    assert words[0].start == 0.0
    assert words[0].end == words[1].start == pytest.approx(0.8, abs=0.45)  # between the first and the second place
    assert words[1].end == pytest.approx(3.3, abs=0.5)
    assert timed_words(attention, [], spelt.get, "en", 4.0) == []


def test_words_of_several_tokens_and_without_spaces():
    spelt = {
        1: b" He",
        2: b"llo",
        3: b",",
        4: b" world",
        5: "世".encode()[:2],
        6: "世".encode()[2:],
        7: "界".encode(),
        8: b" -",
    }
    assert grouped([1, 2, 3, 4, 8], spelt.get, "en") == [("Hello,", 0, 3), ("world -", 3, 5)]
    assert grouped([5, 6, 7], spelt.get, "zh") == [("世", 0, 2), ("界", 2, 3)]
    assert grouped([5, 6, 7], spelt.get, "en") == [("世界", 0, 3)]
    assert grouped([7, 5], spelt.get, "zh")[-1][0] == "\ufffd"  # cut off within a character


def test_a_word_begins_after_the_pause_before_it():
    attention = np.full((3, 40), 0.001, np.float32)
    attention[0, 2:8] = 0.2
    attention[1, 24:30] = 0.2  # positions 8 to 23 are a pause
    attention[2, 38:] = 0.2
    begins, ends = token_times(attention, 4.0)
    assert begins[1] == pytest.approx(2.4, abs=0.31)
    assert ends[0] <= begins[1]


def test_clips_are_joined_with_what_was_said_when():
    clips = open_corpus("prompts-en", "train", 40)
    found = recordings(clips)
    assert found
    for one in found:
        assert len(one.texts) == len(one.times) == 3
        assert one.times[0][0] == 0.0
        assert all(0.3 < end - begin < 2.6 for begin, end in one.times)
        pauses = [b[0] - a[1] for a, b in itertools.pairwise(one.times)]
        assert all(0.1 <= pause <= 0.6 for pause in pauses)
        begin, end = (round(16000 * at) for at in (one.times[0][1], one.times[1][0]))
        assert not one.wave[begin:end].any()
    assert all(np.array_equal(a.wave, b.wave) for a, b in zip(found, recordings(clips), strict=True))


def test_the_heads_with_the_least_error_are_chosen(student, monkeypatch):
    family = Whisper(student)
    one = Recording(np.zeros(48000, np.float32), ["ab", "cd", "ef"], [(0.0, 0.8), (1.0, 1.8), (2.0, 2.8)], "en")
    rows = _first_rows(family, one)[-1] + 1
    random = np.random.default_rng(0)

    def looked(shift):
        out = np.full((rows, 150), 1e-3)
        firsts = _first_rows(family, one)
        for k, (begin, end) in enumerate(one.times):
            edges = np.linspace(begin, end, firsts[k + 1] - firsts[k] + 1) * 50
            for i, (a, z) in enumerate(itertools.pairwise(edges)):
                out[firsts[k] + i, max(0, int(a) + shift) : int(z) + shift] = 0.2
        out[-1, -3:] = 0.3
        return out

    noise = random.dirichlet(np.ones(150), rows)
    heads = np.array([[looked(8), noise], [looked(0), looked(3)]])
    monkeypatch.setattr("export.assembly.alignment._attention", lambda *_: heads)
    chosen, error = choose_heads(None, family, [one], 0.4)
    assert chosen[0] == [1, 0]
    assert [0, 1] not in chosen[:3]
    assert error < 0.2
    heads[:] = noise
    assert choose_heads(None, family, [one], 0.4)[0] in ([], [[0, 0], [0, 1], [1, 0], [1, 1]])
    assert choose_heads(None, family, [], 0.4) == ([], None)


@pytest.fixture(scope="module")
def exported_with_heads(student, tmp_path_factory):
    """A bundle with the heads that the checkpoint names."""
    return export_bundle(student, tmp_path_factory.mktemp("words") / "bundle", ["fp32", "int8", "fp16"])


@torch.no_grad()
def test_the_graph_tells_what_torchs_heads_look_at(student, exported_with_heads):
    bundle = exported_with_heads
    recognizer = Recognizer(bundle, "fp32", vad=False)
    heads = recognizer.manifest.content["alignment"]["heads"]
    assert heads == [[0, 1], [2, 0]]
    family, wave = Whisper(student), tone(1.0)
    model = family.load()
    model.config._attn_implementation = "eager"
    read = [*recognizer.prompts["en"], 65, 66, 67]
    states = encode(model, family.features([wave], 1.4))
    looked = model.model.decoder(
        input_ids=torch.tensor([read]), encoder_hidden_states=states, output_attentions=True
    ).cross_attentions
    expected = torch.stack([looked[layer][0, head] for layer, head in heads]).mean(0).numpy()
    found, _ = DecoderSession(recognizer.model.step, recognizer.model.cross_kv([wave]), len(read)).attend(
        np.array([read])
    )
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    for precision in ("fp32", "int8", "fp16"):
        said = Recognizer(bundle, precision, vad=False).transcribe(wave, words=True)
        assert said.tokens == Recognizer(bundle, precision, vad=False).transcribe(wave).tokens
        assert "words" in said.stages_ms
        assert all(0 <= w.probability <= 1 for w in said.words)
        assert said.logprob <= 0
        assert all(0 <= w.start <= w.end <= 1.0 for w in said.words)
        assert all(a.start <= b.start for a, b in itertools.pairwise(said.words))


@torch.no_grad()
def test_probabilities_are_those_of_torch(student, exported_with_heads, monkeypatch):
    """Of each token, suppressed ones left out, and of the end; a word's is the mean of its tokens'."""
    recognizer = Recognizer(exported_with_heads, "fp32", vad=False)
    family, wave = Whisper(student), tone(1.0)
    model, prompt = family.load(), recognizer.prompts["en"]
    said = recognizer.transcribe(wave, words=True)
    read = torch.tensor([[*prompt, *said.tokens]])
    states = encode(model, family.features([wave], 1.4))
    logits = model(encoder_outputs=(states,), decoder_input_ids=read).logits[0, len(prompt) - 1 :].double()
    logits[:, family.suppress_tokens] -= 1e4
    logits[0, family.begin_suppress_tokens] -= 1e4
    likely = logits.log_softmax(-1)[range(len(said.tokens) + 1), [*said.tokens, family.eos_token_id]].numpy()
    crossed = recognizer.model.cross_kv([wave])
    found = recognizer.model.reread(crossed, prompt, said.tokens, len(wave))
    np.testing.assert_allclose(found.likely, likely, atol=1e-3)
    monkeypatch.setattr("export.edge.decoding.model.REREAD", 3)
    parts = recognizer.model.reread(crossed, prompt, said.tokens, len(wave))
    assert len(said.tokens) > 6
    np.testing.assert_allclose(parts.likely, likely, atol=1e-3)
    np.testing.assert_allclose(parts.attention, found.attention, atol=1e-5)
    assert recognizer.model.reread(crossed, prompt, said.tokens, len(wave), False).likely is None
    counted = likely if said.finished else likely[:-1]
    assert said.logprob == pytest.approx(counted.mean(), abs=1e-3)
    attention, ids = np.eye(4, 40, dtype=np.float32)[:, ::-1], [0, 1, 2]
    spelled = [b" good", b" morn", b"ing"]
    words = timed_words(attention, ids, spelled.__getitem__, "en", 1.0, np.log([0.5, 0.9, 0.3, 0.1]))
    assert [(w.text, w.probability) for w in words] == [("good", 0.5), ("morning", 0.6)]
    assert words[1].later(2.0).probability == 0.6


def test_a_text_that_is_less_likely_than_wanted_is_left_out(exported_with_heads, monkeypatch):
    recognizer = Recognizer(exported_with_heads, "fp32", vad=False)
    wave = tone(1.0)
    said = recognizer.transcribe(wave, words=True)
    for beams in (1, 3):
        plain = recognizer.transcribe(wave, beams=beams, words=True)
        kept = recognizer.transcribe(wave, beams=beams, min_logprob=plain.logprob - 1e-6)
        assert (kept.text, kept.tokens, kept.logprob, kept.words) == (plain.text, plain.tokens, plain.logprob, ())
        out = recognizer.transcribe(wave, beams=beams, words=True, min_logprob=plain.logprob + 1e-6)
        assert (out.text, out.tokens, out.words, out.logprob) == ("", (), (), plain.logprob)
        assert (out.finished, out.looped) == (plain.finished, plain.looped)
    assert recognizer.transcribe(wave).logprob is None
    limit = said.logprob + 1e-6
    monkeypatch.setattr(recognizer, "speech_spans", lambda *_: [SpeechSpan(0, len(wave))])
    (segment,) = recognizer.segments(wave, min_logprob=limit)
    assert segment.transcript.text == ""
    assert format_segments([segment], "a", "srt") == ""
    stream = Stream(recognizer, every=0.9, min_logprob=-1e-9)
    monkeypatch.setattr(stream, "detector", lambda block: np.ones(len(block) // FRAME))
    told = [*stream.feed(wave), *stream.finish()]
    assert [(heard.final, bool(heard.text)) for heard in told] == [(False, True), (True, False)]
    for wrong, message in (
        ({"min_logprob": 1.0}, "up to 0"),
        ({"beams": 0}, "at least 1"),
        ({"language": "xx"}, "'xx'"),
    ):
        with pytest.raises(BundleError, match=message):
            Stream(recognizer, **wrong)  # before anybody has said a word


def test_what_follows_a_loop_is_left_out_by_itself():
    said = Transcript("so so", "en", (1, 2), {}, False, True, (), -0.5)
    nothing = Transcript("", "en", (), {}, True, False, (), -2.5)
    joined = join_transcripts(said, nothing, 1.0)
    assert (joined.text, joined.logprob, joined.finished) == ("so so", -0.5, True)


def test_limits_that_cannot_be_used_are_said(exported_with_heads, tmp_path):
    recognizer = Recognizer(exported_with_heads, "fp32", vad=False)
    for wrong in (0.5, float("nan"), float("-inf")):
        with pytest.raises(BundleError, match=r"expected a number up to 0, such as -1\.5"):
            recognizer.transcribe(tone(1.0), min_logprob=wrong)
    old = Recognizer(of_an_earlier_version(exported_with_heads, tmp_path / "old"), "fp32", vad=False, check=False)
    with pytest.raises(BundleError, match="gives no probabilities, which min_logprob needs; export it again"):
        old.transcribe(tone(1.0), min_logprob=-1.5)


def test_a_bundle_of_an_earlier_version_has_word_times_alone(exported_with_heads, tmp_path):
    bundle = of_an_earlier_version(exported_with_heads, tmp_path / "old")
    old = Recognizer(bundle, "fp32", vad=False, check=False).transcribe(tone(1.0), words=True)
    new = Recognizer(exported_with_heads, "fp32", vad=False).transcribe(tone(1.0), words=True)
    assert [(w.text, w.start, w.end) for w in old.words] == [(w.text, w.start, w.end) for w in new.words]
    assert new.words
    assert old.logprob is None
    assert {w.probability for w in old.words} == {None}


def test_an_export_chooses_heads_or_has_none(student, tmp_path):
    clips = open_corpus("prompts-en", "train", 30)
    bundle = export_bundle(student, tmp_path / "bundle", ["fp32"], aligned=clips)
    recognizer = Recognizer(bundle, vad=False)
    alignment = recognizer.manifest.content["alignment"]
    assert json.loads((bundle / "generation_config.json").read_text())["alignment_heads"] == (
        alignment["heads"] or None
    )
    if alignment["heads"]:
        assert alignment["error_seconds"] <= 0.5
        assert recognizer.transcribe(tone(1.0), words=True).stages_ms["words"] > 0
        return
    with pytest.raises(BundleError, match="no alignment heads"):  # those of a random model follow nothing
        recognizer.transcribe(tone(1.0), words=True)
