"""The C++ example: built against onnxruntime's own library, it writes what the Python runtime writes.

It is built with sanitizers, which end it at the first read or write out of bounds and at undefined behaviour.
"""

import json
import os
import random
import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.assembly.build import export_bundle
from export.edge import Recognizer, read_wav
from tests.conftest import ROOT
from tests.edge.test_wav import chunk, form, riff, stored
from tests.malformed import REFUSED, copied
from tests.models.ctc_checkpoints import in_silence, over_whisper, write_checkpoint
from workbench.audio.decode import write_wav
from workbench.corpus import open_corpus

pytestmark = pytest.mark.slow
SOURCE = ROOT / "export/cpp"
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
INSTALL = "the C++ example needs its tools; on Debian: apt-get install cmake make g++ npm nlohmann-json3-dev"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The built program."""
    if not all(map(shutil.which, ("cmake", "c++", "npm"))):
        pytest.skip(INSTALL)
    build = tmp_path_factory.mktemp("cpp")
    subprocess.run([SOURCE / "headers.sh", build / "include"], check=True)
    # the wheel carries the library under its full version alone; programs look for the major one
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    (build / "libonnxruntime.so.1").symlink_to(library)
    places = [f"-DONNXRUNTIME_INCLUDE={build / 'include'}", f"-DONNXRUNTIME_LIBRARY={build / 'libonnxruntime.so.1'}"]
    places += ["-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DCMAKE_CXX_FLAGS={SANITIZERS}"]
    for command in (["cmake", "-S", SOURCE, "-B", build / "out", *places], ["cmake", "--build", build / "out"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if "nlohmann_jsonConfig.cmake" in done.stderr:
            pytest.skip(INSTALL)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr
    return build / "out/transcribe"


def run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, encoding="utf-8", errors="replace")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_writes_what_the_python_runtime_writes(program, exported, precision, tmp_path):
    clips = [tmp_path / f"{i}.wav" for i in range(5)]
    for path, one in zip(clips, open_corpus("prompts-en", "validation"), strict=False):
        write_wav(path, one.wave()[: 4 * 16000])
    recognizer = Recognizer(exported, precision, 2, vad=False)  # the C++ example has no detector
    done = run(program, exported, *clips, "--precision", precision, "--threads", 2)
    assert done.returncode == 0, done.stderr
    texts = [recognizer.transcribe(read_wav(path)).text for path in clips]
    assert all(texts)
    # a random model writes bytes that are no text, too; they are replaced on both sides
    assert done.stdout == "".join(f"{path}\t{text}\n" for path, text in zip(clips, texts, strict=True))


@pytest.mark.parametrize("units", ["characters", "bytes", "sentencepiece"])
def test_it_reads_a_model_with_a_ctc_head(program, tiny_checkpoint, tmp_path, units):
    if units == "sentencepiece":
        student = in_silence(write_checkpoint(tmp_path / "student", "parakeet"))
    else:
        student = in_silence(over_whisper(tiny_checkpoint, tmp_path / "student", units))
    bundle = export_bundle(student, tmp_path / "bundle", ["fp32", "int8"])
    clips = [tmp_path / f"{i}.wav" for i in range(3)]
    for path, one in zip(clips, open_corpus("prompts-en", "validation"), strict=False):
        write_wav(path, one.wave()[: 4 * 16000])
    for precision in ("fp32", "int8"):
        recognizer = Recognizer(bundle, precision, 2, vad=False)
        done = run(program, bundle, *clips, "--precision", precision, "--threads", 2)
        assert done.returncode == 0, done.stderr
        texts = [recognizer.transcribe(read_wav(path)).text for path in clips]
        assert all(texts)
        # random bytes spell white space of all kinds
        assert (
            done.stdout.split() == "".join(f"{path}\t{text}\n" for path, text in zip(clips, texts, strict=True)).split()
        )
    content = json.loads((bundle / "bundle.json").read_text())
    for change, said in (
        ({"family": "whisper"}, "another family"),
        ({"ctc": {**content["ctc"], "blank": 999}}, "bundle.json's blank"),
    ):
        (bundle / "bundle.json").write_text(json.dumps({**content, **change}))
        done = run(program, bundle, clips[0])
        assert done.returncode in (1, 2)
        assert said in done.stderr


def test_channels_are_averaged_and_a_short_clip_is_read(program, exported, tmp_path):
    samples = (open_corpus("prompts-en", "validation")[0].wave() * 32767).astype("<i2")
    for name, channels in (("mono", [samples]), ("stereo", [samples, samples])):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setparams((len(channels), 2, 16000, 0, "NONE", ""))
            file.writeframes(np.stack(channels, 1).tobytes())
    write_wav(tmp_path / "short.wav", np.zeros(10, np.float32))
    done = run(program, exported, *(tmp_path / f"{name}.wav" for name in ("mono", "stereo", "short")))
    assert done.returncode == 0, done.stderr
    mono, stereo, _ = done.stdout.split(str(tmp_path))[1:]
    assert mono.split("\t", 1)[1] == stereo.split("\t", 1)[1]


def test_it_reads_what_the_python_runtime_reads_and_goes_on_after_a_bad_file(program, exported, tmp_path):
    one = open_corpus("prompts-en", "validation")[0].wave()
    rounded = np.round(one * 127) / 128  # what 8 bits hold, so that all kinds hold the same
    files, headers = [], [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)]
    for code, bits in headers:
        for channels in (1, 2):
            data = stored(
                np.repeat(rounded[:, None], channels, 1)
                * (1 if code == 3 else 2 ** (bits - 8) * 128 / (2 ** (bits - 1) - 1)),
                code,
                bits,
            )
            files.append(tmp_path / f"{code}-{bits}-{channels}.wav")
            files[-1].write_bytes(riff(form(code, channels, 16000, bits, bits == 24), chunk(b"data", data)))
    phases = tmp_path / "phases.wav"
    phases.write_bytes(riff(form(1, 2), chunk(b"data", stored(np.stack([rounded, -rounded], 1), 1, 16), 0)))
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    done = run(program, exported, files[0], tmp_path / "bad.wav", *files[1:], phases)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    found = done.stdout.split(str(tmp_path))[1:]
    assert len(found) == len(files) + 1
    assert len({text.split("\t", 1)[1] for text in found}) == 1
    nan = tmp_path / "nan.wav"
    nan.write_bytes(riff(form(3, 1, 16000, 32), chunk(b"data", stored(np.full(99, np.nan), 3, 32))))
    assert "NaN or infinite" in run(program, exported, nan).stderr


def test_errors_are_one_line_and_end_it(program, exported, tmp_path):
    wav, long, slow = tmp_path / "no.wav", tmp_path / "long.wav", tmp_path / "slow.wav"
    wav.write_bytes(b"RIFF")
    write_wav(long, np.zeros(31 * 16000, np.float32))
    write_wav(slow, np.zeros(100, np.float32))
    slow.write_bytes(slow.read_bytes().replace((16000).to_bytes(4, "little"), (8000).to_bytes(4, "little"), 1))
    cases = [
        ((tmp_path, slow), "bundle.json: no such file"),
        ((exported, tmp_path / "none.wav"), "none.wav: no such file"),
        ((exported, wav), "not a WAV file"),
        ((exported, long), "expected at most 30 s"),
        ((exported, slow), "at 8000 Hz; expected PCM at 16000 Hz"),
        ((exported, slow, "--precision", "q1"), "no precision 'q1'; it has fp32, int8"),
        ((exported, slow, "--threads", "no"), "expected --language CODE"),
        ((exported,), "usage: transcribe BUNDLE FILE.wav"),
    ]
    for arguments, said in cases:
        done = run(program, *arguments)
        assert done.returncode in (1, 2), arguments
        assert said in done.stderr, (said, done.stderr)
        assert len(done.stderr.splitlines()) == 1


def test_a_manifest_cannot_name_files_elsewhere(program, exported, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(exported, copy)
    manifest = copy / "bundle.json"
    manifest.write_text(manifest.read_text().replace("onnx/frontend.onnx", "onnx/../../frontend.onnx"))
    assert "points outside the bundle" in run(program, copy, "any.wav").stderr


@pytest.mark.parametrize("name", REFUSED)
def test_a_bundle_of_a_stranger_is_one_line(program, exported, name, tmp_path):
    bundle = copied(exported, tmp_path / "bundle")
    REFUSED[name](bundle)
    write_wav(tmp_path / "a.wav", np.full(8000, 0.1, np.float32))
    done = run(program, bundle, tmp_path / "a.wav", "--threads", 1)
    assert done.returncode in (1, 2), done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")


def test_recordings_with_faulty_headers_are_read_or_refused(program, exported, tmp_path):
    one, chance = (np.arange(3000) % 200 / 400).astype(np.float32), random.Random(0)
    good = [
        riff(form(code, channels, 16000, bits, bits == 24), chunk(b"LIST", b"abc"), chunk(b"data", stored(np.repeat(one[:, None], channels, 1), code, bits)))
        for code, bits, channels in [(1, 8, 1), (1, 16, 2), (1, 24, 1), (3, 32, 1), (3, 64, 2)]
    ]  # fmt: skip
    files = []
    for i in range(300):
        data = bytearray(chance.choice(good))
        for _ in range(chance.randint(1, 3)):
            at, width = chance.randrange(4, 70), chance.choice([1, 2, 4])
            data[at : at + width] = chance.choice([0, 1, 2, 0x7F, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, chance.getrandbits(32)]).to_bytes(8, "little")[:width]  # fmt: skip
        files.append(tmp_path / f"{i}.wav")
        files[-1].write_bytes(data[: chance.choice([len(data), len(data), chance.randrange(100)])])
    done = run(program, exported, *files, "--threads", 1)
    assert done.returncode == 1, done.stderr
    said = done.stderr.splitlines()
    assert sum(line.startswith("error: ") for line in said) + done.stdout.count(f"{tmp_path}") == 300
    assert all(line.startswith(("error: ", "warning: ")) or ": is truncated, " in line for line in said)


def test_a_pipe_is_refused(program, exported, tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    assert "is not a regular file" in run(program, exported, tmp_path / "a.wav").stderr
