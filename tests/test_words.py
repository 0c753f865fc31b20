"""When words were said: the path, the words, the heads that are chosen, and the graph that tells where they look."""

import itertools

import numpy as np
import pytest
import torch

from export.alignment import choose_heads, following
from export.bundle import export_bundle
from export.edge import BundleError, Recognizer
from export.edge.decoding import Stepping
from export.edge.words import grouped, path, timed_words
from tests.conftest import tone
from workbench.corpus import open_corpus
from workbench.families.whisper import Whisper, encode


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
    assert path(cost).tolist() == starts


def test_words_are_timed_where_the_decoder_looked():
    attention = np.full((4, 40), 0.001, np.float32)  # three tokens and the end
    for row, place in enumerate((2, 14, 26, 38)):
        attention[row, place - 2 : place + 3] = 0.2
    spelt = {1: b" one", 2: b" tw", 3: b"o."}
    words = timed_words(attention, [1, 2, 3], spelt, "en", 4.0)
    assert [w.text for w in words] == ["one", "two."]
    assert words[0].start == 0.0
    assert words[0].end == words[1].start == pytest.approx(0.8, abs=0.45)  # between the first and the second place
    assert words[1].end == pytest.approx(3.3, abs=0.5)
    assert timed_words(attention, [], spelt, "en", 4.0) == []


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
    assert grouped([1, 2, 3, 4, 8], spelt, "en") == [("Hello,", 0, 3), ("world -", 3, 5)]
    assert grouped([5, 6, 7], spelt, "zh") == [("世", 0, 2), ("界", 2, 3)]
    assert grouped([5, 6, 7], spelt, "en") == [("世界", 0, 3)]
    assert grouped([7, 5], spelt, "zh")[-1][0] == "\ufffd"  # cut off within a character


def test_a_head_that_follows_is_told_from_one_that_does_not():
    positions, tokens = 60, 10
    diagonal = np.full((tokens, positions), 1e-4)
    for t in range(tokens):
        diagonal[t, 6 * t : 6 * t + 3] = 0.3
    constant = np.zeros((tokens, positions))
    constant[:, 5] = 1.0
    noise = np.random.default_rng(0).dirichlet(np.ones(positions), tokens)
    assert following(diagonal) > 0.8
    assert following(constant) == 0.0
    assert following(noise) < 0.3
    assert following(diagonal[::-1]) == 0.0  # backwards


@torch.no_grad()
def test_the_graph_tells_what_torchs_heads_look_at(student, tmp_path):
    bundle = export_bundle(
        student, tmp_path / "bundle", ["fp32", "int8", "fp16"]
    )  # of the heads that the checkpoint names
    recognizer = Recognizer(bundle, "fp32")
    heads = recognizer.manifest.content["alignment_heads"]
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
    found = Stepping(recognizer.step, recognizer.states([wave]), len(read)).looks_at(np.array([read]))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    for precision in ("fp32", "int8", "fp16"):
        said = Recognizer(bundle, precision).transcribe(wave, words=True)
        assert said.tokens == Recognizer(bundle, precision).transcribe(wave).tokens
        assert "words" in said.stages_ms
        assert all(0 <= w.start <= w.end <= 1.0 for w in said.words)
        assert all(a.start <= b.start for a, b in itertools.pairwise(said.words))


def test_heads_are_chosen_on_clips_or_there_are_none(student, tmp_path):
    clips = open_corpus("prompts-en", "train", 4)
    family = Whisper(student)
    model = family.load()
    model.config._attn_implementation = "eager"
    heads = choose_heads(model, family, clips, 0.4)
    assert all(0 <= layer < 3 and 0 <= head < 2 for layer, head in heads)
    bundle = export_bundle(student, tmp_path / "bundle", ["fp32"], aligned=clips)
    recognizer = Recognizer(bundle)
    assert recognizer.manifest.content["alignment_heads"] == heads
    if not heads:  # those of a random model follow nothing
        with pytest.raises(BundleError, match="no attention heads"):
            recognizer.transcribe(tone(1.0), words=True)
