"""Hotwords: what tokens gain, what greedy decoding takes back, and what beams find."""

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from export.edge import BundleError, Recognizer, Stream, read_hotwords
from export.edge.bundle.tokens import Detokenizer
from export.edge.decoding import hotwords as hotwords_module
from export.edge.decoding.decoder import beam_search, greedy
from export.edge.decoding.hotwords import START, HotwordPath, Hotwords, parse_hotwords
from export.edge.vad import FRAME
from tests.conftest import ROOT, tone

END = 0
PIECES = [b"", b" Mc", b"Kin", b"ley", b" Mac", b"M", b"c", b" K", b" the", b'"', b"\xe6\x9d\xb1", b"\xe4\xba\xac", b" ", b"K"]  # fmt: skip
IDS = {piece: i for i, piece in enumerate(PIECES) if piece}


class Vocabulary(Detokenizer):
    """These tokens in place of a file's."""

    def __init__(self):
        self.joined, self.ends = b"".join(PIECES), np.cumsum([0, *map(len, PIECES)])


def hotwords(*words, score=2.0):
    return Hotwords(words, Vocabulary(), score)


def spell(*pieces):
    return [IDS[piece] for piece in pieces]


class Scripted:
    """A decoder with given log-probabilities after each text; it remembers only what is in its caches."""

    def __init__(self, likely, rows=1):
        self.likely, self.rows = likely, rows
        self.done = np.zeros(rows, np.int64)
        self.caches = np.full((rows, 64), -1)

    def __call__(self, tokens):
        for row, ids in enumerate(tokens):
            self.caches[row, self.done[row] : self.done[row] + len(ids)] = ids
        self.done += tokens.shape[1]
        return np.stack([self.after(tuple(self.caches[row, 1 : self.done[row]])) for row in range(self.rows)])

    def after(self, text):
        logits = np.full(len(PIECES), -20.0, np.float32)
        for token, value in self.likely.get(text, {END: 0.0}).items():
            logits[token] = value
        return logits

    def reorder(self, rows):
        self.caches = self.caches[rows]


def gained(words, tokens):
    """The sum of what tokens gain."""
    place, total = START, 0.0
    for token in tokens:
        moves = {t: g for one in words.moves(place) for t, g in zip(one.tokens.tolist(), one.gains, strict=True)}
        assert token in moves
        total, place = total + moves[token], words.after(place, token)
    return total


def test_a_word_gains_as_many_scores_as_the_fewest_tokens_that_spell_it():
    words = hotwords("McKinley")
    assert gained(words, spell(b" Mc", b"Kin", b"ley")) == 6.0
    assert gained(words, spell(b" Mc", b"Kin")) == 4.0
    # at the start of a text it may stand without a space, and any division into tokens gains the same
    assert gained(words, spell(b"M", b"c", b"Kin", b"ley")) == 8.0
    assert hotwords("McKinley", score=0.5).gained[-1] == 2.0


def test_a_word_begins_at_a_space_or_after_opening_punctuation_unless_its_script_has_no_spaces():
    words = hotwords("McKinley")
    inside = words.after(START, IDS[b"ley"])
    assert IDS[b"M"] in words.moves(START)[1].tokens
    assert set(words.moves(inside)[1].tokens.tolist()) == set(spell(b" Mc", b" "))
    assert IDS[b"M"] in words.moves(words.after(inside, IDS[b'"']))[1].tokens
    assert (
        IDS[b"M"] in words.moves(words.after(inside, IDS[b"\xe6\x9d\xb1"]))[1].tokens
    )  # after a script without spaces
    assert IDS[b"\xe6\x9d\xb1"] in hotwords("東京").moves(inside)[1].tokens


def test_a_word_in_lower_case_counts_with_a_capital_too():
    assert gained(hotwords("kinley"), spell(b"Kin", b"ley")) == 4.0
    assert IDS[b" the"] in hotwords("the").moves(START)[1].tokens


def test_a_hotword_within_the_score_is_written_and_one_beyond_it_is_not():
    likely = {
        (): {IDS[b" Mac"]: -0.2, IDS[b" Mc"]: -1.9},
        tuple(spell(b" Mc")): {IDS[b"Kin"]: -0.1},
        tuple(spell(b" Mc", b"Kin")): {IDS[b"ley"]: -0.1},
    }

    def written(score):
        return greedy(Scripted(likely), [[1]], [9], END, hotwords=hotwords("McKinley", score=score))[0]

    assert written(2.0).tokens == spell(b" Mc", b"Kin", b"ley")
    assert written(1.6).tokens == spell(b" Mac")
    assert written(2.0).finished


def test_what_begins_like_a_hotword_and_goes_on_differently_is_taken_back():
    likely = {
        (): {IDS[b" the"]: -0.1},
        tuple(spell(b" the")): {IDS[b" Mac"]: -0.2, IDS[b" Mc"]: -1.0},
        tuple(spell(b" the", b" Mc")): {IDS[b"c"]: -0.1, IDS[b"Kin"]: -9.0},
        tuple(spell(b" the", b" Mac")): {IDS[b" the"]: -0.1},
    }
    plain = greedy(Scripted(likely), [[1]], [9], END)[0]
    found = greedy(Scripted(likely), [[1]], [9], END, hotwords=hotwords("McKinley"))[0]
    assert found == plain
    assert plain.tokens == spell(b" the", b" Mac", b" the")


def test_no_hotword_is_begun_where_the_text_ends():
    likely = {(): {IDS[b" the"]: 0.0}, tuple(spell(b" the")): {END: -0.5, IDS[b" Mc"]: -0.6}}
    found = greedy(Scripted(likely), [[1]], [9], END, hotwords=hotwords("McKinley", score=20))[0]
    assert found.tokens == spell(b" the")


def test_no_hotword_is_continued_where_the_text_ends():
    likely = {(): {IDS[b" the"]: 0.0}, tuple(spell(b" the")): {END: -0.2, IDS[b" K"]: -2.0}}
    for search in (
        lambda words: greedy(Scripted(likely), [[1]], [9], END, hotwords=words)[0],
        lambda words: beam_search(Scripted(likely, 3), [1], 9, END, 3, words),
    ):
        assert search(hotwords("the Kley", score=20)).tokens == spell(b" the")


def test_a_word_that_only_begins_with_a_hotword_is_taken_back():
    likely = {
        (): {IDS[b" Mac"]: -0.2, IDS[b" Mc"]: -1.0},
        tuple(spell(b" Mc")): {IDS[b"Kin"]: -0.1},
        tuple(spell(b" Mac")): {IDS[b" the"]: -0.1},
    }
    assert greedy(Scripted(likely), [[1]], [9], END, hotwords=hotwords("Mc"))[0].tokens == spell(b" Mac", b" the")
    likely[tuple(spell(b" Mc"))] = {IDS[b" the"]: -0.1}
    assert greedy(Scripted(likely), [[1]], [9], END, hotwords=hotwords("Mc"))[0].tokens == spell(b" Mc", b" the")
    # in a beam its gain is lost with the next letter, and kept with a space
    likely = {
        (): {IDS[b" Mac"]: -0.2, IDS[b" Mc"]: -1.0},
        **{tuple(spell(first)): {IDS[b"Kin"]: -0.1} for first in (b" Mc", b" Mac")},
    }
    found = [
        beam_search(Scripted({**likely, **changed}, 2), [1], 9, END, 2, hotwords("Mc")).tokens
        for changed in ({}, {tuple(spell(b" Mc")): {IDS[b" the"]: -0.1}})
    ]
    assert found == [spell(b" Mac", b"Kin"), spell(b" Mc", b" the")]


def test_a_hotword_that_the_limit_cuts_off_is_taken_back():
    likely = {
        (): {IDS[b" Mac"]: -0.2, IDS[b" Mc"]: -1.0},
        tuple(spell(b" Mc")): {IDS[b"Kin"]: -0.1},
        tuple(spell(b" Mac")): {IDS[b" the"]: -0.1},
    }
    plain = greedy(Scripted(likely), [[1]], [2], END)[0]
    assert greedy(Scripted(likely), [[1]], [2], END, hotwords=hotwords("McKinley"))[0] == plain
    assert plain.tokens == spell(b" Mac", b" the")


def test_a_clip_takes_back_only_so_much(monkeypatch):
    """A model that begins a hotword at every token and never completes it."""

    class Luring(Scripted):
        calls = 0

        def after(self, text):
            self.calls += 1
            inside = text and text[-1] in spell(b" Mc", b"Kin")
            return super().after(()) if not inside else np.where(np.arange(len(PIECES)) == text[-1] + 1, 0, -20.0)

    likely = {(): {IDS[b" the"]: -0.1, IDS[b" Mc"]: -1.0}}
    monkeypatch.setattr(hotwords_module, "MAX_TAKEN_BACK", 5)
    decoder = Luring(likely)
    found = greedy(decoder, [[1]], [20], END, hotwords=hotwords("McKinley the the the M"))[0]
    assert found == greedy(Luring(likely), [[1]], [20], END)[0]
    assert decoder.calls < 20 + 2 * 7


def random_decoder(seed, rows=1):
    """Random log-probabilities after every text."""

    class Random(Scripted):
        def after(self, text):
            likely = np.random.default_rng([seed, *text]).dirichlet(np.full(len(PIECES), 0.3))
            return np.log(likely + 1e-9).astype(np.float32)

    return Random({}, rows)


@pytest.mark.parametrize("seed", range(40))
def test_a_text_leaves_the_likeliest_tokens_only_for_whole_hotwords(seed):
    """Wherever a token is not the likeliest one after those before it, a hotword is there, and ends there or later."""
    decoder = random_decoder(seed)
    found = greedy(random_decoder(seed), [[1]], [12], END, hotwords=hotwords("McKinley", "the", "KK"))[0]
    if not found.finished:
        return  # the limit may cut a hotword off
    spelled = [PIECES[token].decode("utf-8", "replace") for token in found.tokens]
    text, starts = "".join(spelled), np.cumsum([0, *map(len, spelled)])
    inside = {i for match in re.finditer("McKinley|[Tt]he|KK", text) for i in range(match.start() - 1, match.end())}
    for i, token in enumerate(found.tokens):
        assert token == decoder.after(tuple(found.tokens[:i])).argmax() or int(starts[i]) in inside


@pytest.mark.parametrize("seed", range(10))
def test_clips_of_a_batch_go_back_each_on_its_own(seed):
    class Both(Scripted):
        """Each row is a decoder of its own."""

        def __call__(self, tokens):
            for row, ids in enumerate(tokens):
                self.caches[row, self.done[row] : self.done[row] + len(ids)] = ids
            self.done += tokens.shape[1]
            each = [random_decoder(seed + 100 * row) for row in range(self.rows)]
            return np.stack([one.after(tuple(self.caches[r, 1 : self.done[r]])) for r, one in enumerate(each)])

    words = hotwords("McKinley", "the", "KK")
    alone = [greedy(random_decoder(seed + 100 * row), [[1]], [8], END, hotwords=words)[0] for row in range(3)]
    assert greedy(Both({}, 3), [[1]] * 3, [8] * 3, END, hotwords=words) == alone


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_text_that_is_likeliest_with_its_hotwords(seed):
    """Against every text of up to three tokens, scored by the words that are in it."""
    words, decoder = hotwords("McKinley", "KK", score=1.5), random_decoder(seed)

    def score(tokens):
        total, place, unfinished = 0.0, START, 0.0
        for i, token in enumerate((*tokens, END)):
            likely = decoder.after(tokens[:i])
            own, (onward, begin) = float(likely[token]), words.moves(place)
            if token in onward.tokens:
                gain = min(float(onward.gains[onward.tokens.tolist().index(token)]), -own)
            else:
                gain, total, unfinished = 0.0, total - unfinished, 0.0
                if token in begin.tokens and likely.argmax() != END:
                    gain = min(float(begin.gains[begin.tokens.tolist().index(token)]), -own)
            place = words.after(place, token)
            total, unfinished = total + own + gain, 0.0 if words.ends[place.node] else unfinished + gain
        return total / (len(tokens) + 1)

    texts = [t for n in range(4) for t in itertools.product(range(1, len(PIECES)), repeat=n)]
    best = max(texts, key=score)
    found = beam_search(random_decoder(seed, 400), [1], 4, END, 400, words)
    if len(found.tokens) < 4:
        assert score(tuple(found.tokens)) == pytest.approx(score(best), abs=1e-4)


def test_a_long_text_with_a_hotword_is_not_cut_short_by_its_gain():
    """Every token is nearly certain, so the mean would fall with each one if the hotword's gain raised it above 0."""
    text = spell(b" Mc", b"Kin", b"ley", *[b" the"] * 8)
    likely = {tuple(text[:i]): {token: -0.05, END: -1.5 if i == 4 else -30} for i, token in enumerate(text)}
    found = beam_search(Scripted(likely, 2), [1], 20, END, 2, hotwords("McKinley", score=5))
    assert found.tokens == text


def test_a_row_that_goes_back_continues_as_if_it_had_never_gone_further(exported):
    recognizer = Recognizer(exported, "fp32", 1, vad=False)
    kept = recognizer.model.cross_kv([tone(1.0), tone(1.0) * 0.3])
    wandering, straight = (recognizer.model.decoder(kept, 16) for _ in range(2))
    prompt = np.array([recognizer.prompts["en"]] * 2, np.int64)
    wandering(prompt)
    wandering(np.array([[5], [6]]))
    wandering(np.array([[7], [8]]))
    wandering.done[0] -= 2
    wandering.done[1] -= 1
    found = wandering(np.array([[9], [9]]))
    straight(prompt)
    first = straight(np.array([[9], [6]]))[0].copy()  # the next call may write to its memory
    second = straight(np.array([[9], [9]]))[1]
    np.testing.assert_allclose(found, [first, second], atol=1e-4)


def test_what_cannot_be_a_hotword_is_said():
    for words, problem in [
        ("the", "expected a list of texts"),
        ([5], "expected a list of texts"),
        (["\ud800x"], "is not Unicode text"),
        ([], "0 hotwords; expected 1 to 5000"),
        (["the"] * 5001, "5001 hotwords"),
        (["the", " "], r"hotword 2 \(''\) has 0 bytes"),
        (["the" * 50], "150 bytes; expected 1 to 100"),
        (["Zoë"], "lacks tokens for 'Zoë'"),
    ]:
        with pytest.raises(BundleError, match=problem):
            Hotwords(words, Vocabulary())
    for score in (0, -1, 21, float("nan")):
        with pytest.raises(BundleError, match="score of hotwords"):
            hotwords("the", score=score)


def test_what_the_model_never_writes_is_no_way_to_spell_a_hotword(exported):
    with pytest.raises(BundleError, match="lacks tokens for 'Mac'"):
        Hotwords(["Mac"], Vocabulary(), suppressed=spell(b" Mac"))
    recognizer = Recognizer(exported, "fp32", 1, vad=False)
    always = json.loads((exported / "generation_config.json").read_text())["suppress_tokens"]
    assert always
    assert recognizer.model.suppressed_tokens() == set(always)


def test_a_file_of_hotwords(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffNew York\r\n\nWashington, D.C.\nAda\nAda\n".encode())
    assert read_hotwords(path) == ["New York", "Washington, D.C.", "Ada"]
    assert parse_hotwords(" a ,b\nc") == ["a", "b", "c"]
    path.write_bytes(b"\n \n")
    with pytest.raises(BundleError, match="holds no hotwords"):
        read_hotwords(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="is not UTF-8 text"):
        read_hotwords(path)
    with pytest.raises(BundleError, match="cannot be read"):
        read_hotwords(tmp_path / "none.txt")


def test_the_runtime_alone_takes_hotwords(exported, tmp_path):
    from workbench.audio.decode import write_wav

    write_wav(tmp_path / "tone.wav", tone(1.0))
    (tmp_path / "words.txt").write_text("hello\n")

    def edge(*options):
        command = [sys.executable, "-m", "edge", "--bundle", str(exported), "--precision", "fp32", "--no-vad", *options]
        return subprocess.run([*command, "tone.wav"], cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT / "export")})  # fmt: skip

    assert "hello" in edge("--hotwords", "words.txt", "--hotwords-score", "20").stdout.lower()
    assert "hello" not in edge().stdout.lower()
    wrong = edge("--hotwords", "none.txt")
    assert (wrong.returncode, wrong.stderr) == (2, "error: none.txt: cannot be read (No such file or directory)\n")
    assert edge("--min-logprob", "-0.000001").stdout.strip().endswith(".wav")
    assert "'2': expected a number up to 0, such as -1.5" in edge("--min-logprob", "2").stderr
    assert "expected a number above 0, at most 20" in edge("--hotwords", "words.txt", "--hotwords-score", "0").stderr


def test_hotwords_change_what_a_bundle_writes(exported):
    """A random model writes about anything; with a high score, the hotword is in its text."""
    recognizer = Recognizer(exported, "fp32", 1, vad=False)
    plain = recognizer.transcribe(tone(1.0))
    for beams in (1, 3):
        found = recognizer.transcribe(tone(1.0), beams=beams, hotwords=recognizer.new_hotwords(["zebra"], 20))
        assert "zebra" in found.text.lower()
    assert "zebra" not in plain.text.lower()
    batch = recognizer.transcribe_batch([tone(1.0)] * 2, hotwords=recognizer.new_hotwords(["zebra"], 20))
    assert batch[0].text == batch[1].text
    assert "zebra" in batch[0].text.lower()
    json.dumps(batch[0].tokens)
    beams = recognizer.transcribe(tone(1.0), beams=3)
    assert recognizer.transcribe_batch([tone(1.0), tone(0.7)], beams=3)[0].text == beams.text


def test_a_stream_listens_for_hotwords(exported, monkeypatch):
    recognizer = Recognizer(exported, "fp32", 1)
    stream = Stream(recognizer, every=100.0, hotwords=recognizer.new_hotwords(["zebra"], 20))
    monkeypatch.setattr(stream, "detector", lambda block: np.ones(len(block) // FRAME))
    told = [*stream.feed(tone(1.0)), *stream.finish()]
    assert [(heard.final, "zebra" in heard.text.lower()) for heard in told] == [(True, True)]


def test_a_path_remembers_no_more_than_its_text():
    path = HotwordPath(hotwords("McKinley"))
    logits = np.full(len(PIECES), -9.0, np.float32)
    logits[IDS[b" the"]] = 0
    assert [path.choose(logits, END) for _ in range(3)] == [(IDS[b" the"], 0)] * 3
    assert len(path.places) == 4
