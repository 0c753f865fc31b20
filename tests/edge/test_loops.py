"""A phrase that is really said again and again is kept; a decoder that never stops is cut at the cap, and goes on after the loop."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from export.edge import Transcript, Word
from export.edge.__main__ import main
from export.edge.decoding.decoder import beam_search, greedy, repeated, stopped
from export.edge.decoding.model import Reading
from export.edge.options import Options
from export.edge.recognizer import Recognizer, _likely
from tests.conftest import tone
from workbench.audio.decode import write_wav

RATE = 16_000
END, SENTENCE, OTHER = 0, [*range(1, 9)], [9, 10, 11]


class Script:
    """A decoder that writes what it is given, whatever it has written before, then its last token for ever."""

    def __init__(self, tokens, rows=1):
        self.tokens, self.rows, self.at = tokens, rows, -1

    def __call__(self, _tokens):
        self.at += 1
        # no two alike, whose order NumPy leaves open; the end, which ends a beam, is the unlikeliest
        logits = np.tile(np.linspace(-60, -30, 16, dtype=np.float32), (self.rows, 1))
        logits[:, self.tokens[min(self.at, len(self.tokens) - 1)]] = 0.0
        return logits

    def reorder(self, rows):
        pass


@pytest.mark.parametrize("times", [3, 4, 12])
@pytest.mark.parametrize("phrase", [SENTENCE, SENTENCE[:1] * 4, SENTENCE * 3])
def test_a_phrase_that_is_said_many_times_is_written_as_often_and_so_is_what_follows(phrase, times):
    said = [*phrase * times, *OTHER]
    found = greedy(Script([*said, END]), [[1]], [400], END)[0]
    assert (found.tokens, found.finished, found.looped) == (said, True, False)
    found = beam_search(Script([*said, END], 3), [1], 400, END, 3)
    assert (found.tokens, found.finished, found.looped) == (said, True, False)


def test_a_decoder_that_never_stops_is_cut_at_its_cap_and_one_round_is_kept():
    loop = [*OTHER, *SENTENCE * 60]
    found = greedy(Script(loop), [[1]], [100], END)[0]
    assert (found.tokens, found.finished, found.looped) == ([*OTHER, *SENTENCE], False, True)
    found = beam_search(Script(loop, 3), [1], 100, END, 3)
    assert (found.tokens, found.finished, found.looped) == ([*OTHER, *SENTENCE], False, True)


@pytest.mark.parametrize(
    ("tokens", "excess"),
    [
        ([1, 2, 3] * 3, 0),  # too few altogether
        ([1, 2, 3] * 4, 9),
        ([1, 2, 3] * 4 + [1, 2], 11),  # the cap falls anywhere
        ([5, 5, 5, 5], 0),  # a telephone number
        ([9, *[5] * 12], 11),
        ([8, 7, *[1, 2, 3, 4, 5, 6] * 3], 12),
        ([*range(30)] * 3, 60),  # a long sentence
        ([*range(30)] * 2, 0),
        ([*range(20)], 0),
        ([*[1, 2] * 6, 3], 0),  # it has come out of it
        ([], 0),
    ],
)
def test_a_loop_is_what_repeats_itself_at_the_end(tokens, excess):
    assert repeated(tokens) == excess
    assert stopped(tokens).tokens == tokens[: len(tokens) - excess]


class Fake:
    """What goes on after a loop needs of a recogniser: attention that goes along the first half of the clip, and a detector."""

    prompts, window, has_alignment_heads = {"en": [1]}, 30.0, True

    def __init__(self, speech):
        self.model = self.detector = self
        self.given, self.speech = [], speech

    def cross_kv(self, waves):
        return waves

    logprob = None

    def reread(self, _crossed, _prompt, tokens, samples, likely):
        assert not likely
        positions = samples // 320
        rows = np.zeros((len(tokens) + 1, positions), np.float32)
        for i in range(len(tokens) + 1):
            rows[i, i * positions // (2 * len(tokens)) :][:5] = 1.0
        return Reading(rows, None)

    def forget(self):
        pass

    def __call__(self, wave):
        return np.full(-(-len(wave) // 512), self.speech, np.float32)

    def transcribe(self, wave, *_, **__):
        self.given.append(len(wave))
        words = (Word("and", 0.5, 0.75),)
        return Transcript("and more.", "en", (7, 8), {"rest": 1.0}, True, words=words, logprob=self.logprob)


def test_what_is_said_after_the_loop_is_transcribed():
    said = Transcript(
        "Once.", "en", (1, 2, 3, 4), {"rest": 2.0, "encoder": 1.0}, False, True, (Word("Once", 0.0, 1.0),)
    )
    fake = Fake(1.0)
    found = Recognizer._continued(fake, np.ones(8 * RATE, np.float32), said, Options("en"))
    assert fake.given[0] / RATE == pytest.approx(4.0, abs=0.5)
    assert (found.text, found.tokens, found.finished, found.looped) == (
        "Once. and more.",
        (1, 2, 3, 4, 7, 8),
        True,
        True,
    )
    assert found.stages_ms == {"rest": 3.0, "encoder": 1.0}
    assert found.logprob is None
    likely = replace(said, logprob=-0.5)  # of four tokens, and then of two and the end
    fake.logprob = -0.1
    found = Recognizer._continued(fake, np.ones(8 * RATE, np.float32), likely, Options("en"))
    assert found.logprob == pytest.approx((4 * -0.5 + 3 * -0.1) / 7)
    assert found.words[1].start == pytest.approx(8 - fake.given[0] / RATE + 0.5, abs=1e-3)
    silent, without_heads, without_detector = Fake(0.0), Fake(1.0), Fake(1.0)
    without_heads.has_alignment_heads, without_detector.detector = False, None
    for unable in (silent, without_heads, without_detector):
        assert Recognizer._continued(unable, np.ones(8 * RATE, np.float32), said, Options("en")) is said


@pytest.mark.parametrize(
    ("before", "after", "text"), [(-3.0, -0.1, "and more."), (-0.5, -3.0, "Once."), (-3.0, -3.0, "")]
)
def test_a_loop_and_what_follows_are_left_out_each_by_itself(before, after, text):
    fake = Fake(1.0)
    fake.logprob = after
    transcribe = fake.transcribe
    fake.transcribe = lambda *given, **how: _likely(transcribe(*given), how["min_logprob"])
    said = Transcript("Once.", "en", (1, 2, 3, 4), {}, False, True, (), before)
    found = Recognizer._continued(fake, np.ones(8 * RATE, np.float32), said, Options("en", min_logprob=-1.5))
    assert (found.text, found.looped) == (text, True)
    assert len(fake.given) == 1  # what follows is read, whatever came before
    fake.detector = None
    found = Recognizer._continued(fake, np.ones(8 * RATE, np.float32), said, Options("en", min_logprob=-1.5))
    assert found.text == ("" if before < -1.5 else "Once.")
    assert found.looped


def test_the_command_says_that_it_met_a_loop(exported, tmp_path, monkeypatch, capsys):
    said = Transcript("Once.", "en", (1,), {}, False, True)
    monkeypatch.setattr("export.edge.recognizer.Recognizer.transcribe", lambda *_, **__: said)
    write_wav(tmp_path / "loop.wav", tone(0.5))
    monkeypatch.setattr(sys, "argv", ["edge", "--bundle", str(exported), str(tmp_path / "loop.wav")])
    assert main() == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'loop.wav'}\tOnce.\n"
    assert printed.err.startswith(f"warning: {tmp_path / 'loop.wav'} at 0.00 s: the decoder repeated itself")
    assert printed.err.count("\n") == 1
