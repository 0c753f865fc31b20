"""Beams of a CTC model: the search against all paths there are, the alignment, hotwords and a language model."""

import gzip
import json
import math
import re
import runpy
from itertools import groupby, product
from pathlib import Path

import numpy as np
import pytest

from export.edge import BundleError, Hotwords, LanguageModel, LanguageModelWeights
from export.edge.bundle.tokens import Detokenizer
from export.edge.decoding import language_model
from export.edge.decoding.ctc_path import align, greedy_path
from export.edge.decoding.decoder import log_softmax
from export.edge.decoding.hotword_scores import HotwordScores
from export.edge.decoding.prefix_search import _Texts, prefix_beam_search

BLANK, LETTERS = 0, {" ": 1, "a": 2, "b": 3}
EVERYTHING = {"beams": 10**6, "floor": -np.inf, "reach": np.inf}
ARPA = """
\\data\\
ngram 1=6
ngram 2=3

\\1-grams:
-0.9\t</s>
-99\t<s>\t-0.3
-1.5\t<unk>
-0.6\tab\t-0.2
-0.8\tb\t-0.4
-1.1\tbaa

\\2-grams:
-0.3\t<s> ab
-0.25\tab b
-0.15\tb </s>

\\end\\
"""
UNIGRAMS = {"</s>": -0.9, "<unk>": -1.5, "ab": -0.6, "b": -0.8, "baa": -1.1}
BACKOFFS = {"<s>": -0.3, "ab": -0.2, "b": -0.4}
BIGRAMS = {("<s>", "ab"): -0.3, ("ab", "b"): -0.25, ("b", "</s>"): -0.15}


@pytest.fixture
def letters(tmp_path):
    return vocabulary(tmp_path)


def vocabulary(folder, names="Ġab"):
    """Tokens of single characters from 1 on; 0 is the blank."""
    (folder / "pieces.json").write_text(json.dumps({name: i for i, name in enumerate(names, 1)}))
    return Detokenizer(folder / "pieces.json")


def drawn(seed, positions, size=4):
    return log_softmax(np.random.default_rng(seed).normal(0, 2, (positions, size)).astype(np.float32))


def all_texts(likely, blank=BLANK):
    """Log-probability of each text: all paths of all positions, added up."""
    found = {}
    for path in product(range(likely.shape[1]), repeat=len(likely)):
        text = tuple(token for token, _ in groupby(path) if token != blank)
        found[text] = np.logaddexp(found.get(text, -np.inf), sum(likely[i, k] for i, k in enumerate(path)))
    return found


def spelled(tokens):
    return "".join(" ab"[token - 1] for token in tokens)


def ids(text):
    return [LETTERS[letter] for letter in text]


def best_of(totals):
    return max(totals.items(), key=lambda one: one[1])


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("seed", range(12))
def test_the_search_finds_the_likeliest_text(seed, blank):
    likely = drawn(seed, 1 + seed % 6)
    expected, total = best_of(all_texts(likely, blank))
    found, score = prefix_beam_search(likely, blank, **EVERYTHING)
    assert tuple(found) == expected
    assert score == pytest.approx(total, abs=1e-9)


def test_a_text_of_many_paths_wins_over_the_likeliest_path():
    likely = np.log([[0.4, 0.6], [0.4, 0.6]])  # nothing: 0.36; the letter, at either place or both: 0.64
    assert greedy_path(likely.astype(np.float32), 1).tokens == []
    assert prefix_beam_search(likely, 1, 2) == ([0], pytest.approx(math.log(0.64)))


def test_a_letter_is_written_twice_only_with_a_blank_between():
    sure = np.log(np.full((3, 2), 1e-6) + np.eye(2)[[1, 1, 1]])
    assert prefix_beam_search(sure, 0, 5)[0] == [1]
    sure[1] = np.log([1 - 1e-6, 1e-6])
    assert prefix_beam_search(sure, 0, 5)[0] == [1, 1]


def test_no_text_is_kept_twice():
    """Nor where `xy` is dropped and comes back from `x`, while `xyx` was kept."""
    texts, kept = _Texts([], 10, 3.0), []
    for row in ([0.01, 0.98, 0.01], [0.01, 0.5, 0.49], [0.01, 0.98, 0.01], [0.5, 0.01, 0.49], [0.1, 0.85, 0.05]):
        texts.step(np.log(row), 0, np.array([1, 2]))
        kept.append([tuple(texts.written(node)) for node in texts.nodes])
    x, y = 1, 2
    assert [(x, y) in texts for texts in kept[1:4]] == [True, False, True]
    assert all((x, y, x) in texts for texts in kept[2:])
    assert all(len(set(texts)) == len(texts) for texts in kept)


def test_no_path_is_counted_twice():
    """With few beams the score of a text is at most that of all its paths."""
    for seed in range(15):
        likely = drawn(seed, 6)
        totals = all_texts(likely)
        for beams in (2, 3, 5):
            found, score = prefix_beam_search(likely, BLANK, beams)
            assert score <= totals[tuple(found)] + 1e-9


class Counting:
    """Scores that add nothing and count what they are asked."""

    def __init__(self):
        self.asked = 0

    def start(self):
        return None

    def after(self, state, token):
        self.asked += 1

    def so_far(self, state):
        return 0.0

    at_end = so_far


def test_what_cannot_win_is_not_tried():
    """In speech most positions are sure: the limits change neither the text nor, to speak of, its score."""
    said = np.repeat([0, 2, 0, 3, 1, 0, 2, 2, 0], 3)
    likely = drawn(1, len(said))
    likely[np.arange(len(said)), said] += 8
    likely -= np.logaddexp.reduce(likely, 1)[:, None]
    limited, unlimited = Counting(), Counting()
    found, score = prefix_beam_search(likely, BLANK, 100, [limited])
    expected, total = prefix_beam_search(likely, BLANK, 100, [unlimited], floor=-np.inf, reach=np.inf)
    assert found == expected
    assert score == pytest.approx(total, abs=0.05)
    assert 0 < limited.asked < unlimited.asked / 4


@pytest.mark.parametrize("seed", range(10))
def test_the_alignment_is_the_likeliest_path_of_the_text(seed):
    likely = drawn(seed, 6)
    by_text = {}
    for path in product(range(4), repeat=len(likely)):
        text = tuple(token for token, _ in groupby(path) if token != BLANK)
        total = sum(likely[i, k] for i, k in enumerate(path))
        if total > by_text.get(text, (-np.inf, ()))[0]:
            by_text[text] = total, path
    for text, (_, path) in by_text.items():
        runs, at = [], 0
        for token, run in groupby(path):
            size = len(list(run))
            if token != BLANK:
                runs.append((at, at + size - 1))
            at += size
        found = align(likely, text, BLANK)
        assert found.tokens == list(text)
        assert list(zip(found.first, found.last, strict=True)) == runs
    best = greedy_path(likely.astype(np.float32), BLANK)
    assert align(likely, best.tokens, BLANK) == best


def test_a_long_text_is_aligned():
    """Of more tokens than the smallest integers count."""
    path = [token for i in range(200) for token in (1 + i % 2, BLANK)]
    likely = np.log(np.eye(4)[path] * 0.9 + 0.025)
    found = align(likely, [1 + i % 2 for i in range(200)], BLANK)
    assert found.first == found.last == list(range(0, 400, 2))


def gain_by_hand(text, hotword, score):
    return sum(
        score * (len(word) + bool(at)) for at, word in words_and_places(text) if word == hotword
    )  # the space before it is a token, too


def words_and_places(text):
    return [(one.start(), one[0]) for one in re.finditer(r"\S+", text)]


@pytest.mark.parametrize("seed", range(10))
def test_the_search_finds_the_best_text_with_hotwords(letters, seed):
    likely, scores = drawn(seed, 6), HotwordScores(Hotwords(["ab"], letters, 0.7))
    totals = {text: total + gain_by_hand(spelled(text), "ab", 0.7) for text, total in all_texts(likely).items()}
    expected, total = best_of(totals)
    found, score = prefix_beam_search(likely, BLANK, scores=[scores], **EVERYTHING)
    assert tuple(found) == expected
    assert score == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("ab", 2),
        ("b ab", 3),
        ("ab ba", 5),
        ("ab bb", 2),
        ("abb", 0),
        ("ab ba ab", 8),
        ("ab b", 2),
        ("a", 0),
        ("ab bab", 2),
    ],
)
def test_a_hotword_gains_with_each_token_and_only_as_a_whole(letters, text, tokens):
    scores = HotwordScores(Hotwords(["ab", "ab ba"], letters, 0.5))
    state = scores.start()
    for token in ids(text):
        state = scores.after(state, token)
    assert scores.at_end(state) == 0.5 * tokens


def by_hand(text, weights):
    """What a bigram model adds to a text, computed from the tables."""
    total, before = 0.0, "<s>"
    for word in [*text.split(), "</s>"]:
        known = word if word in UNIGRAMS else "<unk>"
        backed_off = BACKOFFS.get(before, 0.0) + UNIGRAMS[known]
        total += weights.alpha * math.log(10) * BIGRAMS.get((before, known), backed_off)
        total += (weights.alpha * math.log(10) * weights.unk_score_offset) * (known == "<unk>")
        total += weights.beta * (word != "</s>")
        before = known
    return total


@pytest.fixture
def arpa(tmp_path):
    pytest.importorskip("kenlm", reason="the extra lm is not installed")
    (tmp_path / "words.arpa").write_text(ARPA)
    return tmp_path / "words.arpa"


@pytest.mark.parametrize("weights", [LanguageModelWeights(), LanguageModelWeights(0.8, -0.5, -1.0)])
@pytest.mark.parametrize("seed", range(8))
def test_the_search_finds_the_best_text_with_a_language_model(letters, arpa, seed, weights):
    likely, lm = drawn(seed, 7), LanguageModel(arpa, letters, weights=weights)
    totals = {text: total + by_hand(spelled(text), weights) for text, total in all_texts(likely).items()}
    expected, total = best_of(totals)
    found, score = prefix_beam_search(likely, BLANK, scores=[lm], **EVERYTHING)
    assert spelled(found).split() == spelled(expected).split()
    assert score == pytest.approx(total, abs=1e-5)  # KenLM's probabilities are of 32 bits
    both = [lm, HotwordScores(Hotwords(["ab"], letters, 0.7))]
    totals = {text: total + gain_by_hand(spelled(text), "ab", 0.7) for text, total in totals.items()}
    assert prefix_beam_search(likely, BLANK, scores=both, **EVERYTHING)[1] == pytest.approx(
        best_of(totals)[1], abs=1e-5
    )


def test_a_word_is_scored_at_its_end_but_for_what_cannot_become_one(letters, arpa):
    lm = LanguageModel(arpa, letters, weights=LanguageModelWeights(0.5, 1.5, -10))
    states = [lm.start()]
    for token in ids("ba bb "):
        states.append(lm.after(states[-1], token))
    first = lm.so_far(states[3])  # `ba` is not a word
    assert [lm.so_far(state) for state in states[:3]] == [0, 0, 0]  # but may become `baa`
    assert first == pytest.approx(0.5 * math.log(10) * (-0.3 - 1.5 - 10) + 1.5)
    assert lm.so_far(states[4]) == first  # `b` is one
    assert lm.so_far(states[5]) == pytest.approx(first - 0.5 * math.log(10) * 10)  # no word begins with `bb`
    assert lm.so_far(states[6]) == pytest.approx(first + 0.5 * math.log(10) * (-1.5 - 10) + 1.5)


def test_tokens_of_several_characters_complete_words_too(tmp_path, arpa):
    (tmp_path / "pieces.json").write_text(json.dumps({"Ġab": 1, "ba": 2, "a": 3, "bĠb": 4, "b": 5}))
    weights = LanguageModelWeights(0.7, 0.3)
    lm = LanguageModel(arpa, Detokenizer(tmp_path / "pieces.json"), weights=weights)
    state = lm.start()
    for token in (1, 1, 2, 3, 4, 0):  # ` ab abbaab b`, and a token without text
        state = lm.after(state, token)
    assert lm.at_end(state) == pytest.approx(by_hand("ab abbaab b", weights), abs=1e-5)


def test_a_bundle_that_writes_lower_case_by_itself_is_scored_in_lower_case(tmp_path, arpa):
    (tmp_path / "capitals.json").write_text(json.dumps({"Ġ": 1, "A": 2, "B": 3}))
    capitals = Detokenizer(tmp_path / "capitals.json")
    lm = LanguageModel(arpa, capitals, True)
    state = lm.after(lm.after(lm.start(), 2), 3)
    assert lm.so_far(state) == 0
    assert lm.at_end(state) == pytest.approx(by_hand("ab", LanguageModelWeights()), abs=1e-5)
    with pytest.raises(BundleError, match="not one in ten of its words can be written with the bundle's tokens"):
        LanguageModel(arpa, capitals)
    arpa.write_text(re.sub(r"\b(ab|baa|b)\b", lambda word: word[0].upper(), ARPA))
    with pytest.raises(BundleError, match="not one in ten"):  # whose words are looked up in lower case
        LanguageModel(arpa, capitals, True)


def test_compressed_models_are_read_alike(letters, arpa):
    packed = arpa.with_suffix(".gz")
    packed.write_bytes(gzip.compress(arpa.read_bytes()))
    assert LanguageModel(packed, letters).words == LanguageModel(arpa, letters).words == [b"ab", b"b", b"baa"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (ARPA[:100], "is no n-gram model that KenLM reads: End of file"),
        ("", "is no n-gram model that KenLM reads: End of file"),
        (
            ARPA.replace("1-grams", "x").replace("2-grams", "1-grams").replace("x", "2-grams"),
            "Was expecting n-gram header",
        ),
        (ARPA.replace("-0.6\tab", "0.6\tab"), "Positive log probability"),
        (ARPA.replace("-0.6\tab", "a\x1bb\tab"), r"Could not parse \"a\?b\""),
        (ARPA.replace("ngram 1=6", "ngram 1=999999999999"), "which its size does not allow"),
        (ARPA.replace("ngram 2=3", "".join(f"ngram {i}=1\n" for i in range(2, 9))), "order 8"),
        ("\x00\xff" * 500, "is no n-gram model that KenLM reads"),
        (gzip.compress(ARPA.encode())[:60], "is cut off or damaged|zlib"),
    ],
)
def test_a_damaged_model_is_one_clear_line(letters, arpa, content, problem):
    arpa.write_bytes(content if isinstance(content, bytes) else content.encode("latin-1"))
    with pytest.raises(BundleError, match=problem) as error:
        LanguageModel(arpa, letters)
    assert str(error.value).startswith(str(arpa))
    assert str(error.value).isprintable()


def test_what_cannot_be_read_or_is_out_of_range_is_said(letters, arpa, monkeypatch):
    with pytest.raises(BundleError, match=r"no\.arpa: cannot be read"):
        LanguageModel(arpa.parent / "no.arpa", letters)
    with pytest.raises(BundleError, match="cannot be read"):
        LanguageModel(arpa.parent, letters)
    for wrong in ({"alpha": -1.0}, {"beta": math.nan}, {"unk_score_offset": 1.0}):
        with pytest.raises(BundleError, match=f"{next(iter(wrong))} of the language model is"):
            LanguageModelWeights(**wrong)
    monkeypatch.setitem(__import__("sys").modules, "kenlm", None)
    with pytest.raises(BundleError, match=r"needs the package kenlm.*pip install kenlm, or distill-workbench\[lm\]"):
        language_model.LanguageModel(arpa, letters)


def test_the_script_makes_a_model_whose_probabilities_add_up_to_one(tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="the extra lm is not installed")
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "ngram.py"))
    (tmp_path / "made.arpa").write_text(script["arpa"](["a b a", "a c", "b", ""], 3))
    model = kenlm.Model(str(tmp_path / "made.arpa"))
    for before in ("", "a", "a b", "c", "unknown"):
        found = [model.score(f"{before} {word}", eos=False) for word in ("a", "b", "c", "<unk>", "</s>")]
        assert sum(10 ** (one - model.score(before, eos=False)) for one in found) == pytest.approx(1, abs=1e-5)
    # one word followed `b a`, once: half is left for all that follows `a`
    assert 10 ** (model.score("b a c", eos=False) - model.score("b a", eos=False)) == pytest.approx(
        10 ** model.score("a c", bos=False, eos=False) / 10 ** model.score("a", bos=False, eos=False) / 2, abs=1e-4
    )
