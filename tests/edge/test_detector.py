"""The speech detector in front of the runtime: silence and noise give no text, no word is lost, and a switch turns it off."""

import subprocess
import sys

import numpy as np
import pytest

from export.edge import BundleError, Recognizer
from export.edge.vad import anybody_speaks
from export.measurement.robustness import unspoken
from tests.conftest import tone
from workbench.audio.decode import write_wav
from workbench.corpus import open_corpus

RATE = 16_000


@pytest.fixture(scope="module")
def recognizer(exported):
    return Recognizer(exported, "fp32", 2)


@pytest.fixture(scope="module")
def off(exported):
    return Recognizer(exported, "fp32", 2, vad=False)


@pytest.fixture(scope="module")
def one_word():
    """Every fourth clip of one word."""
    clips = [u for split in ("validation", "test") for u in open_corpus("prompts-en", split)]
    return [u.wave() for u in clips if len(u.text.split()) == 1][::4]


def test_silence_and_noise_give_no_text_unless_it_is_switched_off(recognizer, off):
    noise = np.random.default_rng(0).normal(0, 0.01, 2 * RATE).astype(np.float32)
    for wave in (np.zeros(2 * RATE, np.float32), noise, tone(2.0)):
        found = recognizer.transcribe(wave)
        assert (found.text, found.tokens, found.finished, found.looped) == ("", (), True, False)
        assert set(found.stages_ms) == {"detector"}
        assert off.transcribe(wave).tokens
        assert "detector" not in off.transcribe(wave).stages_ms
        assert recognizer.transcribe(wave, vad=False).tokens == off.transcribe(wave).tokens


def test_a_clip_with_speech_anywhere_is_transcribed_as_a_whole(recognizer, off):
    word = next(u.wave() for u in open_corpus("prompts-en", "validation") if u.seconds > 1)
    wave = np.concatenate([np.zeros(3 * RATE, np.float32), word, np.zeros(2 * RATE, np.float32)])
    found, expected = recognizer.transcribe(wave), off.transcribe(wave)
    assert found.tokens == expected.tokens
    assert next(iter(found.stages_ms)) == "detector"
    assert set(found.stages_ms) - {"detector"} == set(expected.stages_ms)


def test_a_batch_leaves_out_the_clips_in_which_nobody_speaks(recognizer, off, one_word):
    waves = [np.zeros(RATE, np.float32), one_word[0], tone(1.0), one_word[0] / 2]
    found = recognizer.transcribe_batch(waves)
    assert [bool(one.tokens) for one in found] == [False, True, False, True]
    assert found[1].tokens == off.transcribe(one_word[0]).tokens
    assert [one.tokens for one in recognizer.transcribe_batch([waves[0]])] == [()]


@pytest.mark.parametrize("level", [0, -20, -30, -40])
def test_single_words_are_heard_however_quiet(recognizer, one_word, level):
    quiet = [(np.round(w * 10 ** (level / 20) * 32767) / 32767).astype(np.float32) for w in one_word]
    assert all(anybody_speaks(wave, recognizer.detector) for wave in quiet)


def test_a_click_does_not_hide_a_quiet_word(recognizer, one_word):
    clicked = [np.concatenate([[np.float32(1.0)], 0.01 * w]).astype(np.float32) for w in one_word[:6]]
    assert all(anybody_speaks(wave, recognizer.detector) for wave in clicked)


def test_sounds_without_speech_are_not(recognizer):
    sounds = [wave for waves in unspoken().values() for wave in waves]
    assert sum(anybody_speaks(wave, recognizer.detector) for wave in sounds) <= 2


def test_a_bundle_without_a_detector_is_used_without_it_unless_it_is_asked_for(exported, tmp_path):
    import json
    import shutil

    from export.bundle.manifest import record

    bundle = shutil.copytree(exported, tmp_path / "bundle")
    content = json.loads((bundle / "bundle.json").read_text()) | {"speech_detector": None}
    (bundle / "bundle.json").write_text(json.dumps(content))
    record(bundle)
    assert Recognizer(bundle).transcribe(tone(1.0)).tokens
    with pytest.raises(BundleError, match="without a speech detector"):
        Recognizer(bundle, vad=True)


def test_the_command_has_a_switch(exported, tmp_path):
    write_wav(tmp_path / "zeros.wav", np.zeros(RATE, np.float32))
    said = [
        subprocess.run(
            [sys.executable, "-B", "-m", "edge", *flags, str(tmp_path / "zeros.wav")],
            cwd=exported, capture_output=True, encoding="utf-8", errors="replace", check=True,
        ).stdout.split("\t", 1)[1].strip()
        for flags in ([], ["--no-vad"])
    ]  # fmt: skip
    assert said[0] == ""
    assert said[1]


def test_verification_compares_what_the_decoder_writes(exported):
    script = (  # a process without torch, as in verification
        "from pathlib import Path; from export.verification.clients.edge import EdgeClient;"
        f"print(EdgeClient(Path({str(exported)!r}), 'fp32', 1).recognizer.detector)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
