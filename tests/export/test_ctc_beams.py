"""Beams, hotwords and language models of bundles with a CTC head: in the runtime, on both command lines and in the server."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from export.assembly.build import export_bundle
from export.bundle.manifest import open_manifest
from export.edge import BundleError, LanguageModelWeights, Recognizer, Stream, read_wav
from export.edge.__main__ import main as edge
from export.edge.decoding.ctc import DEFAULT_BEAMS
from export.edge.decoding.ctc_path import align
from export.edge.decoding.decoder import log_softmax
from export.edge.decoding.prefix_search import prefix_beam_search
from export.edge.vad import FRAME
from export.measurement.decoding import Decoding
from export.measurement.measure import measure
from tests.conftest import tone
from tests.models.ctc_checkpoints import in_silence, over_whisper
from workbench.audio.decode import write_wav
from workbench.cli.app import main as workbench
from workbench.core.errors import UserError
from workbench.corpus import open_corpus

ARPA = "\\data\\\nngram 1=5\nngram 2=1\n\n\\1-grams:\n-1\t</s>\n-99\t<s>\t-0.3\n-2\t<unk>\n-0.5\tnine\t-0.1\n-1\tpress\n\n\\2-grams:\n-0.1\t<s> nine\n\n\\end\\\n"


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctc")
    return export_bundle(in_silence(over_whisper(tiny_checkpoint, folder / "student")), folder / "bundle", ["fp32"])


@pytest.fixture(scope="module")
def ctc(bundle):
    return Recognizer(bundle, vad=False)


@pytest.fixture(scope="module")
def wave():
    noise = np.random.default_rng(3).normal(1, 0.5, 16_000)
    return (tone(1.0) * noise).astype(np.float32)


@pytest.fixture
def arpa(tmp_path):
    pytest.importorskip("kenlm", reason="the extra lm is not installed")
    (tmp_path / "words.arpa").write_text(ARPA)
    return tmp_path / "words.arpa"


def nipe(ctc):
    """Logits of `nipe`, and of `nine` by two nats less."""
    letters = {ctc.detokenize.bytes_of(i).decode(): i for i in range(ctc.ctc.size)}
    heard = np.full((12, ctc.ctc.size), -20.0, np.float32)
    heard[:, 0] = -1.0
    for at, letter in enumerate("nipe", 1):
        heard[2 * at, letters[letter]] = 4.0
    heard[6, letters["n"]] = 2.0
    return heard


def test_beams_write_what_the_search_finds_with_the_times_of_that_text(ctc, wave):
    greedy, said = ctc.transcribe(wave), ctc.transcribe(wave, beams=8, words=True)
    likely = log_softmax(ctc.ctc.logits(wave))
    tokens, score = prefix_beam_search(likely, ctc.ctc.blank, 8)
    assert said.tokens == tuple(tokens)
    assert said.tokens != greedy.tokens  # the random head is sure of nothing
    assert said.text == ctc.ctc.text(tokens)
    path = align(likely, tokens, ctc.ctc.blank)
    each = 1.0 / len(likely) if not ctc.ctc.silence_after else (1 + ctc.ctc.silence_after) / len(likely)
    assert " ".join(word.text for word in said.words) == said.text
    assert said.words[0].start == pytest.approx(min(path.first[0] * each, 1), abs=1e-3)
    assert said.words[-1].end == pytest.approx(min((path.last[-1] + 1) * each, 1), abs=1e-3)
    assert ctc.transcribe(wave, words=True).text == greedy.text
    assert "beams" in said.stages_ms
    assert "beams" not in greedy.stages_ms
    assert score > -np.inf


def test_hotwords_are_brought_into_the_case_of_the_vocabulary_and_need_beams(ctc, wave, monkeypatch):
    monkeypatch.setattr(ctc.ctc, "logits", lambda _: nipe(ctc))
    for score, text in (0.4, "nipe"), (0.6, "nine"):  # four letters gain 1.6 or 2.4 nats
        hotwords = ctc.new_hotwords(["NINE"], score)
        assert ctc.transcribe(wave, beams=3, hotwords=hotwords).text == text
        assert ctc.transcribe(wave, hotwords=hotwords).text == text
        assert ctc.transcribe_batch([wave], hotwords=hotwords)[0].text == text
    assert DEFAULT_BEAMS > 1
    with pytest.raises(
        BundleError, match="lacks tokens for 'quiz'"
    ):  # the corpus that it was made from has no q, u or z
        ctc.new_hotwords(["quiz"])


def test_unlikely_texts_are_left_out(ctc, wave):
    for beams in (1, 5):
        plain = ctc.transcribe(wave, beams=beams, words=True)
        kept = ctc.transcribe(wave, beams=beams, min_logprob=plain.logprob - 1e-6)
        assert (kept.text, kept.logprob, kept.words) == (plain.text, plain.logprob, ())
        out = ctc.transcribe(wave, beams=beams, words=True, min_logprob=plain.logprob + 1e-6)
        assert (out.text, out.tokens, out.words, out.logprob) == ("", (), (), plain.logprob)


def test_a_language_model_decides_between_texts(ctc, wave, arpa, monkeypatch):
    lm = ctc.new_language_model(arpa, LanguageModelWeights(1.0, 0.0))
    monkeypatch.setattr(ctc.ctc, "logits", lambda _: nipe(ctc))
    assert ctc.transcribe(wave, beams=20).text == "nipe"
    assert ctc.transcribe(wave, beams=20, lm=lm).text == "nine"
    assert ctc.transcribe(wave, lm=lm, words=True).words[0].text == "nine"
    (segment,) = [ctc.transcribe_span(wave, type("Span", (), {"start": 0, "end": 16_000}), lm=lm)]
    assert segment.transcript.text == "nine"
    assert ctc.transcribe_batch([wave], lm=lm)[0].text == "nine"
    stream = Stream(ctc, every=100.0, lm=lm)
    monkeypatch.setattr(stream, "detector", lambda block: np.ones(len(block) // FRAME))
    assert [heard.text for heard in [*stream.feed(wave), *stream.finish()]] == ["nine"]
    free = ctc.new_language_model(arpa, LanguageModelWeights(0.0, 0.0))
    assert ctc.transcribe(wave, beams=20, lm=free).text == "nipe"


def test_what_cannot_be_done_is_said(ctc, exported, wave, arpa, monkeypatch):
    whisper, lm = Recognizer(exported, vad=False), ctc.new_language_model(arpa)
    for attempt in (lambda: whisper.new_language_model(arpa), lambda: whisper.transcribe(wave, lm=lm)):
        with pytest.raises(BundleError, match="has a decoder, which takes no language model; leave it out"):
            attempt()
    for recognizer in (ctc, whisper):
        with pytest.raises(BundleError, match="beams is 0; expected at least 1"):
            recognizer.transcribe(wave, beams=0)
    monkeypatch.setattr(ctc, "prompts", {"zh": [0]})
    with pytest.raises(BundleError, match="which language 'zh' does not write"):
        ctc.transcribe(wave, "auto", lm=lm)  # it can only be that one
    monkeypatch.setattr(ctc, "prompts", {"en": [0], "zh": [0]})
    with pytest.raises(BundleError, match="words between spaces, which language 'zh' does not write"):
        ctc.transcribe(wave, "zh", lm=lm)


def status_of(program, monkeypatch, capsys, *options):
    monkeypatch.setattr("sys.argv", ["program", *map(str, options)])
    try:
        status = program()
    except SystemExit as stopped:
        status = stopped.code
    return status, *capsys.readouterr()


def test_both_command_lines_take_them(bundle, ctc, wave, arpa, tmp_path, monkeypatch, capsys):
    write_wav(tmp_path / "clip.wav", wave)
    lm = ctc.new_language_model(arpa, LanguageModelWeights(0.1, 9, -3))
    expected = ctc.transcribe(wave, beams=7, lm=lm, words=True)
    assert expected.text != ctc.transcribe(wave, beams=7).text
    options = [
        "--bundle",
        bundle,
        "--beams",
        7,
        "--lm",
        arpa,
        "--lm-alpha",
        0.1,
        "--lm-beta",
        9,
        "--lm-unk-score-offset",
        -3,
    ]
    options += ["--words", "--format", "json", tmp_path / "clip.wav"]
    monkeypatch.setattr("export.edge.recognizer.anybody_speaks", lambda *_: True)
    for program, command in ((edge, []), (workbench, ["transcribe", "--language", "en"])):
        status, out, _ = status_of(program, monkeypatch, capsys, *command, *options)
        (segment,) = json.loads(out)["segments"]
        assert not status
        assert segment["text"] == expected.text
        assert [word["text"] for word in segment["words"]] == [word.text for word in expected.words]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lm", "missing.arpa"], "missing.arpa: cannot be read"),
        (["--lm", "cut.arpa"], "is no n-gram model that KenLM reads"),
        (["--beams", "0"], "--beams"),
    ],
)
def test_bad_input_is_one_line_and_status_2(bundle, arpa, tmp_path, monkeypatch, capsys, options, said):
    (tmp_path / "cut.arpa").write_text(ARPA[:60])
    write_wav(tmp_path / "clip.wav", tone(1.0))
    monkeypatch.chdir(tmp_path)
    for program, command in ((edge, []), (workbench, ["transcribe"])):
        status, out, err = status_of(program, monkeypatch, capsys, *command, "clip.wav", "--bundle", bundle, *options)
        assert (status, out) == (2, "")
        assert said in err
        assert "Traceback" not in err


def test_options_of_a_language_model_need_one_and_a_bundle(bundle, exported, arpa, tmp_path, monkeypatch, capsys):
    write_wav(tmp_path / "clip.wav", tone(1.0))
    for options, said in (
        (["--bundle", bundle, "--lm-beta", 1], "--lm-beta: there is no language model; name its file with --lm"),
        (["--lm", arpa], "--lm: needs a bundle with a CTC head"),
        (["--bundle", exported, "--beams", 21], "beams is 21; expected at most 20 for a model with a decoder"),
        (["--bundle", exported, "--lm", arpa], "has a decoder, which takes no language model"),
    ):
        status, out, err = status_of(workbench, monkeypatch, capsys, "transcribe", tmp_path / "clip.wav", *options)
        assert (status, out) == (2, "")
        assert said in " ".join(err.split())
    command = ["--bundle", exported, "--lm", arpa, tmp_path / "clip.wav"]
    status, out, err = status_of(edge, monkeypatch, capsys, *command)
    assert (status, out, err.count("\n")) == (2, "", 1)
    status, _, err = status_of(
        edge, monkeypatch, capsys, "--bundle", bundle, "--lm", arpa, "--lm-alpha", "nan", tmp_path / "clip.wav"
    )
    assert (status, err) == (2, "error: alpha of the language model is nan; expected 0 to 10\n")
    status, _, err = status_of(edge, monkeypatch, capsys, "--bundle", bundle, "--lm-beta", 2, tmp_path / "clip.wav")
    assert (status, err) == (2, "error: --lm-beta: there is no language model; name its file with --lm\n")


def test_the_bundle_needs_kenlm_only_for_a_language_model(bundle, wave, tmp_path):
    write_wav(tmp_path / "clip.wav", wave)
    program = "import sys; sys.modules['kenlm'] = None; sys.argv[0] = 'edge'; from edge.__main__ import main; sys.exit(main())"
    for options, status in (["--beams", "5"], 0), (["--lm", "words.arpa"], 2):
        command = [sys.executable, "-B", "-c", program, "--bundle", ".", *options, str(tmp_path / "clip.wav")]
        done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == status
        assert ("needs the package kenlm" in done.stderr) == (status == 2)


def test_the_server_takes_a_language_model(bundle, ctc, wave, arpa, tmp_path):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from tests.serving.conftest import serving

    write_wav(tmp_path / "clip.wav", wave)
    weights = LanguageModelWeights(0.1, 9, -3)
    expected = ctc.transcribe(wave, beams=7, lm=ctc.new_language_model(arpa, weights)).text
    assert expected != ctc.transcribe(wave, beams=7).text
    with serving(bundle, language="en", vad=False, beams=7, lm=arpa, lm_weights=weights) as client:
        file = ("clip.wav", (tmp_path / "clip.wav").read_bytes())
        assert client.audio.transcriptions.create(model=ctc.manifest.name, file=file).text == expected
    with pytest.raises(UserError, match=r"missing\.arpa: cannot be read"), serving(bundle, lm=Path("missing.arpa")):
        pass


def test_a_measurement_with_beams_and_a_language_model(bundle, exported, speech, ctc, arpa, tmp_path):
    corpus, copied, out = str(speech(2)), shutil.copytree(bundle, tmp_path / "bundle"), tmp_path / "out"
    measure_it = partial(measure, [copied], str(exported), out, [corpus], threads=1, robustness=False)
    plain = measure_it()
    weights = LanguageModelWeights(0.1, 9, -3)
    found = measure_it(decoding=Decoding(7, arpa, weights))
    lm = ctc.new_language_model(arpa, weights)
    for clip, row in zip(open_corpus(corpus, "test"), found["clips"], strict=True):
        texts = list(row["hypotheses"].values())
        write_wav(tmp_path / "clip.wav", clip.wave())
        assert texts[1] == ctc.transcribe(read_wav(tmp_path / "clip.wav"), beams=7, lm=lm).text
    assert found["clips"] != plain["clips"]
    assert all(row["hypotheses"] and list(row["stages_ms"].values())[1]["rest"] > 0 for row in found["clips"])
    assert found["decoding"]["lm"] == "words.arpa"
    assert found["command"].endswith("--lm-alpha 0.1 --lm-beta 9 --lm-unk-score-offset -3")
    recorded = open_manifest(copied).content["measurement"]["systems"][0]
    assert recorded["wer"] == plain["systems"][1]["wer"]  # what the bundle does by default
    assert measure_it(decoding=Decoding(7, arpa, weights)) == found  # not measured anew
    assert "decoding" not in measure_it()
    for bundles, decoding, said in (
        ([exported], Decoding(1, arpa), "--lm: none of the bundles has a CTC head"),
        ([copied, exported], Decoding(21), "--beams 21: expected at most 20 for a model with a decoder"),
        ([copied], Decoding(1, tmp_path / "none.arpa"), "cannot be read"),
    ):
        with pytest.raises(UserError, match=said):
            measure(bundles, str(exported), tmp_path / "other", [corpus], threads=1, decoding=decoding)
    assert not (tmp_path / "other").exists()
