"""Drafted decoding: whatever a draft proposes, the text is the greedy decoder's; a good one takes fewer passes."""

import itertools

import numpy as np
import onnx
import pytest

from export.edge import Recognizer, Stream
from export.edge.decoding.decoder import Hypothesis, greedy
from export.edge.decoding.drafted import MOST, DraftCounts, greedy_with_draft, passes_agree
from export.edge.decoding.drafts import EarlierText, PromptLookup
from export.edge.decoding.sessions import open_session, session_options
from export.graphs.step import PROJECT_FROM
from export.quantization.int8 import DEFAULTS, quantize_dynamic
from tests.conftest import of_an_earlier_version, tone
from workbench.core.machine.host import describe_host

RATE = 16_000
END = 9


@pytest.fixture(scope="module")
def recognizer(exported):
    return Recognizer(exported, "fp32", threads=1, vad=False)


def waves():
    """Clips on which the tiny model ends early, late, or at its limit."""
    generator = np.random.default_rng(3)
    noises = [generator.normal(0, 0.2, round(s * RATE)).astype(np.float32) for s in (0.2, 0.7, 1.3, 2.0)]
    return [*noises, tone(0.5), tone(1.6), np.zeros(RATE // 2, np.float32)]


class Fixed:
    """Proposes the same tokens each time, whatever was written."""

    def __init__(self, *tokens):
        self.tokens = tokens

    def __call__(self, written):
        return self.tokens


class Known:
    """Knows the text; some of what it proposes is spoilt."""

    def __init__(self, text, spoil=lambda _, token: token):
        self.text = [spoil(i, token) for i, token in enumerate(text)]

    def __call__(self, written):
        return self.text[len(written) :]


def drafts_for(text, end, vocabulary):
    spoilt = [(t + 1) % vocabulary for t in text]
    return {
        "none": Fixed(),
        "right": Known(text),
        "past the end": Known([*text, end, *text, *text]),
        "all wrong": Known(spoilt),
        "every other token wrong": Known(text, lambda i, t: t if i % 2 else (t + 1) % vocabulary),
        "every fifth token wrong": Known(text, lambda i, t: t if i % 5 else (t + 1) % vocabulary),
        "far too long": Known([*text, *range(200)] * 5),
        "not in the vocabulary": Known([*text[:2], vocabulary, *text]),
        "negative": Known([*text[:3], -1, *text]),
        "the end at once": Fixed(end),
        "always the same": Fixed(*text[:4]),
        "shifted": EarlierText([*spoilt[:3], *text]),
        "with gaps": EarlierText([t for i, t in enumerate(text) if i % 4]),
        "an earlier text": EarlierText(text[: len(text) // 2]),
        "lookup": PromptLookup(1, 5),
    }


def test_every_draft_gives_the_text_of_greedy_decoding(recognizer):
    """Also its first token, which must not be the end; to the end, or to the token limit."""
    model, finished, in_one_pass = recognizer.model, set(), 0
    assert model.takes_drafts
    for wave in waves():
        cross_kv, prompt = model.cross_kv([wave]), model.prompts["en"]
        (whole,) = greedy(model.decoder(cross_kv, len(prompt) + 40), [prompt], [40], model.end_token)
        # a random model hardly ever ends a text: some other token does
        for end, limit in itertools.product((model.end_token, whole.tokens[9]), (1, 2, 40)):
            sizes = len(prompt) + limit
            (plain,) = greedy(model.decoder(cross_kv, sizes), [prompt], [limit], end)
            finished.add(plain.finished)
            vocabulary = model.decoder(cross_kv, sizes).vocabulary
            for name, draft in drafts_for(plain.tokens, end, vocabulary).items():
                decoder, counts = model.decoder(cross_kv, sizes), DraftCounts()
                found = greedy_with_draft(decoder, prompt, limit, end, draft, counts=counts)
                assert found == plain, name
                if name == "right" and not plain.looped and not counts.given_up:  # a loop's text lacks its repetitions
                    assert counts.passes == -(-counts.tokens // (MOST + 1))
                    in_one_pass += counts.passes == 1
    assert finished == {True, False}
    assert in_one_pass > 10


def test_logits_of_several_positions_are_those_of_one_by_one(recognizer):
    """To the last bit, where the processor's products allow it: in quantized weights, the smallest difference would grow."""
    model = recognizer.model
    cross_kv, prompt = model.cross_kv([tone(1.0)]), model.prompts["en"]
    tokens = np.array([[*prompt, 5, 3, 77, 200, 14]])
    decoder = model.decoder(cross_kv, 16)
    single = [decoder(tokens[:, : len(prompt)])[0].copy()]
    single += [decoder(tokens[:, [i]])[0].copy() for i in range(len(prompt), tokens.shape[1])]
    decoder = model.decoder(cross_kv, 16)
    together = decoder.several(tokens, 6)
    assert together.shape == (1, 6, decoder.vocabulary)
    np.testing.assert_allclose(together[0], single, rtol=0, atol=1e-4)
    if "avx512f" in describe_host()["cpu_flags"]:  # on others it has not been tried
        np.testing.assert_array_equal(together[0], single)
    # the end is masked before the first token alone, as greedy decoding has it
    assert [row[model.end_token] < -5e3 for row in single] == [True] + [False] * 5
    # then single passes again
    np.testing.assert_array_equal(decoder(np.array([[7]])).shape, (1, decoder.vocabulary))


def test_rows_of_a_batch_have_their_own_positions(recognizer):
    model = recognizer.model
    cross_kv, prompt = model.cross_kv([tone(1.0), tone(1.0, amplitude=0.01)]), model.prompts["en"]
    decoder = model.decoder(cross_kv, 16)
    decoder(np.array([prompt] * 2))
    decoder.done[1] = 0
    logits = decoder.several(np.array([[5, 6], [7, 8]]), 2)
    assert (logits[:, :, model.end_token] < -5e3).tolist() == [[False, False], [True, False]]


def test_a_graph_that_gives_the_last_logits_alone_takes_no_drafts(exported, tmp_path):
    """Such are those of older bundles."""
    old = Recognizer(of_an_earlier_version(exported, tmp_path / "old"), "fp32", threads=1, vad=False, check=False)
    assert not old.model.takes_drafts
    plain = Recognizer(exported, "fp32", threads=1, vad=False).transcribe(tone(1.0))
    assert old.transcribe(tone(1.0), draft=Known(plain.tokens)).tokens == plain.tokens


def test_a_graph_whose_passes_differ_takes_no_drafts(exported, tmp_path):
    """Dynamic int8 has one scale for all tokens of a pass."""
    quantize_dynamic(exported / "onnx" / "step_decoder.onnx", tmp_path / "int8.onnx", DEFAULTS)
    for path in (tmp_path / "int8.onnx", exported / "onnx" / "step_decoder_quantized.onnx"):
        step = open_session(path, session_options(1), ["CPUExecutionProvider"])
        assert any(i.name == PROJECT_FROM for i in step.get_overridable_initializers())
        assert not passes_agree(step)


def test_the_int8_decoder_is_without_what_makes_passes_agree(exported):
    """Its pass over one token would be slower for nothing."""
    weights = [
        {i.name for i in onnx.load(exported / "onnx" / f"step_decoder{name}.onnx").graph.initializer}
        for name in ("", "_quantized")
    ]
    assert ["no_query" in names for names in weights] == [True, False]


def test_beams_hotwords_and_batches_are_decoded_without(recognizer):
    wave = tone(1.0)
    wrong, hotwords = Fixed(1, 2, 3), recognizer.new_hotwords(["tone"])
    assert recognizer.transcribe(wave, beams=2, draft=wrong).tokens == recognizer.transcribe(wave, beams=2).tokens
    plain = recognizer.transcribe(wave, hotwords=hotwords)
    assert recognizer.transcribe(wave, hotwords=hotwords, draft=wrong).tokens == plain.tokens
    assert recognizer.transcribe(wave, words=True, draft=wrong).words == recognizer.transcribe(wave, words=True).words


class Scripted:
    """A decoder that writes a given text; at one place two tokens are as good as equal."""

    def __init__(self, text, close=None):
        self.text, self.close = text, close
        self.done, self.vocabulary, self.passes = np.zeros(1, np.int64), 20, 0

    def __call__(self, tokens):
        return self.several(tokens, 1)[:, 0]

    def several(self, tokens, count):
        self.passes += 1
        self.done += tokens.shape[1]
        places = range(int(self.done[0]) - count, int(self.done[0]))
        logits = np.zeros((1, count, 20), np.float32)
        for i, place in enumerate(places):
            logits[0, i, self.text[place] if place < len(self.text) else END] = 5
            if place == self.close:
                logits[0, i, 11] = 5.0005
        return logits


def test_tokens_that_are_nearly_equal_are_decided_without_a_draft():
    text, counts = [1, 2, 3, 4], DraftCounts()
    found = greedy_with_draft(Scripted(text, 2), [0], 9, END, Known(text), counts=counts)
    assert found == Hypothesis([1, 2, 11, 4], True)
    assert counts.given_up == 1
    found = greedy_with_draft(Scripted(text), [0], 9, END, Known(text), counts=counts)
    assert found == Hypothesis(text, True)
    assert counts.given_up == 1


def test_a_loop_at_the_limit_is_cut_as_without_a_draft():
    text = [1, 2] * 20
    (plain,) = greedy(Scripted(text), [[0]], [16], END)
    assert plain == Hypothesis([1, 2], False, True)
    for draft in (Known(text), PromptLookup(2), Known([1, 2])):
        assert greedy_with_draft(Scripted(text), [0], 16, END, draft) == plain


def test_a_text_is_no_draft():
    with pytest.raises(TypeError, match="tokens of an earlier transcript"):
        EarlierText("some text")


def test_counts():
    text, counts = [1, 2, 3, 4, 5, 6], DraftCounts()
    decoder = Scripted(text)
    greedy_with_draft(decoder, [0], 9, END, EarlierText([1, 2, 8, 4, 5]), counts=counts)
    # 1 2, then 3 itself; 4 5, then 6; then the end
    assert (counts.passes, counts.tokens, counts.proposed, counts.accepted) == (3, 7, 7, 4)
    assert decoder.passes == 3


def test_an_earlier_text_is_realigned():
    def proposed(earlier, written):
        return list(EarlierText(earlier)(written))

    assert proposed([1, 2, 3, 4], []) == [1, 2, 3, 4]
    assert proposed([1, 2, 3, 4], [1, 2]) == [3, 4]
    assert proposed([1, 2, 3, 4], [1, 7]) == [3, 4]  # as if it had been replaced
    assert proposed([1, 2, 3, 4], [1, 3]) == [4]  # one left out
    assert proposed([1, 2, 3, 4], [1, 7, 2]) == [3, 4]  # one more
    assert proposed([1, 2, 3, 4], [1, 2, 3, 4, 5]) == []
    assert proposed([], [1]) == []
    # of two places the nearer one
    assert proposed([1, 2, 3, 1, 5], [9, 9, 9, 1]) == [5]
    piecewise = EarlierText([1, 2, 3, 4, 5])
    assert [list(piecewise([1])), list(piecewise([1, 2, 3]))] == [[2, 3, 4, 5], [4, 5]]


def test_lookup_proposes_what_followed_last_time():
    assert list(PromptLookup(2, 3)([1, 2, 3, 4, 1, 2])) == [3, 4, 1]
    assert list(PromptLookup(2, 3)([1, 2, 8, 1, 2, 9, 1, 2])) == [9, 1, 2]
    assert list(PromptLookup(2, 3)([1, 2, 3, 4, 1, 3])) == []
    assert list(PromptLookup(2, 3)([1])) == []


def test_a_stream_tells_the_same_with_drafts(recognizer, monkeypatch):
    """Partial texts are drafts of the next; the first one of an utterance has none."""
    wave, told, given = np.concatenate(waves()), [], []
    real = recognizer.transcribe

    def spied(*args, draft=None, **more):
        given.append(draft is not None)
        return real(*args, draft=draft, **more)

    for drafts in (True, False):
        stream = Stream(recognizer, every=0.3, drafts=drafts)
        stream.detector = Speech()
        monkeypatch.setattr(recognizer, "transcribe", spied)
        told.append([*itertools.chain.from_iterable(map(stream.feed, np.array_split(wave, 40))), *stream.finish()])
    assert told[0] == told[1]
    assert len([one for one in told[0] if one.final]) == 2
    count = len(told[0])
    first = [True, *(one.final for one in told[0][:-1])]
    assert [not one for one in given[:count]] == first
    assert not any(given[count:])


class Speech:
    """A detector that finds speech, a second of silence after two seconds, and speech again."""

    def __init__(self):
        self.read = 0

    def __call__(self, block):
        frames = np.arange(self.read, self.read + len(block), 512) / RATE
        self.read += len(block)
        return np.where((frames > 2) & (frames < 3), 0.0, 1.0)
