"""WAV files of every kind that the runtime's reader takes, written byte by byte, and those that it refuses in one line."""

import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from export.edge import AudioError, BundleError, read_wav
from export.edge.audio.resample import Resampler, resample, resampled
from export.edge.audio.wav import BLOCK, parse_pcm
from tests.conftest import tone
from workbench.audio.decode import decode, write_wav

RATE = 16_000
GUID = bytes.fromhex("000000001000800000aa00389b71")


def stored(wave, code, bits):
    """Samples as bytes; full scale is 1."""
    if code == 3:
        return wave.astype(f"<f{bits // 8}").tobytes()
    pcm = np.round(wave.astype(np.float64) * (2 ** (bits - 1) - 1)).astype("<i4")
    if bits == 8:
        return (pcm + 128).astype(np.uint8).tobytes()
    return np.ascontiguousarray(pcm).view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()


def chunk(name, content, size=None, pad=True):
    return (
        name + struct.pack("<I", len(content) if size is None else size) + content + b"\0" * (pad and len(content) % 2)
    )


def riff(*chunks, kind=b"RIFF"):
    body = b"WAVE" + b"".join(chunks)
    return kind + struct.pack("<I", len(body)) + body


def form(code=1, channels=1, rate=RATE, bits=16, extensible=False):
    align = channels * bits // 8
    plain = struct.pack("<HHIIHH", 0xFFFE if extensible else code, channels, rate, rate * align % 2**32, align, bits)
    extra = struct.pack("<HHIH", 22, bits, 0, code) + GUID if extensible else b""
    return chunk(b"fmt ", plain + extra)


@pytest.fixture
def put(tmp_path):
    def write(content, name="x.wav"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(("code", "bits"), [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_width_and_number_of_channels_is_read(put, code, bits, channels, extensible):
    wave = tone(0.1)
    data = stored(np.repeat(wave[:, None], channels, 1), code, bits)
    path = put(riff(form(code, channels, RATE, bits, extensible), chunk(b"data", data)))
    np.testing.assert_allclose(read_wav(path), wave, atol=2 ** (2 - min(bits, 24)))
    np.testing.assert_allclose(read_wav(path), decode(path), atol=1e-4)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_data_size_that_was_never_filled_in_reaches_to_the_end(put, size, caplog):
    wave = tone(0.1)
    path = put(riff(form(), chunk(b"LIST", b"INFO"), chunk(b"data", stored(wave, 1, 16), size)))
    np.testing.assert_allclose(read_wav(path), wave, atol=1e-4)
    assert not caplog.records


def test_rf64_says_its_size_elsewhere(put):
    wave = tone(0.1)
    data = stored(wave, 1, 16)
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0, len(data), len(wave), 0))
    path = put(riff(ds64, form(), chunk(b"data", data, 0xFFFFFFFF), chunk(b"LIST", b"INFO" * 9), kind=b"RF64"))
    assert len(read_wav(path)) == len(wave)


@pytest.mark.parametrize("pad", [True, False])
def test_chunks_of_odd_size_are_passed_over_with_or_without_padding(put, pad):
    wave = tone(0.1)
    path = put(
        riff(form(), chunk(b"LIST", b"odd", pad=pad), chunk(b"data", stored(wave, 1, 16)), chunk(b"LIST", b"end"))
    )
    np.testing.assert_allclose(read_wav(path), wave, atol=1e-4)


def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes_and_said(put, caplog):
    data = stored(tone(0.2), 1, 16)
    content = riff(form(), chunk(b"data", data[: len(data) // 2 + 1], len(data), pad=False))
    path = put(content, "x\x1b[2J.wav")
    assert len(read_wav(path)) == RATE // 10
    assert "x\\x1b[2J.wav: is cut off; it has 0.10 of 0.20 s" in caplog.text


def test_channels_that_cancel_each_other_leave_the_loudest(put):
    wave = tone(0.1)
    for channels in ([wave, -wave], [wave * 0, -wave, wave]):
        path = put(riff(form(1, len(channels)), chunk(b"data", stored(np.stack(channels, 1), 1, 16))))
        np.testing.assert_allclose(np.abs(read_wav(path)), np.abs(wave), atol=1e-4)
    path = put(riff(form(1, 2), chunk(b"data", stored(np.stack([wave, wave * 0], 1), 1, 16))))
    np.testing.assert_allclose(read_wav(path), wave / 2, atol=1e-4)
    path = put(riff(form(1, 2), chunk(b"data", stored(np.zeros((99, 2)), 1, 16))))
    assert not read_wav(path).any()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (riff(form(rate=0), chunk(b"data", b"\0\0")), "its sample rate is 0 Hz; expected 1000 to 768000 Hz"),
        (riff(form(rate=1), chunk(b"data", b"\0\0")), "its sample rate is 1 Hz"),
        (riff(form(rate=2**32 - 1), chunk(b"data", b"\0\0")), "its sample rate is 4294967295 Hz"),
        (riff(form(channels=0), chunk(b"data", b"\0\0")), "it has 0 channels"),
        (riff(form(code=7, bits=8), chunk(b"data", b"\0\0")), "its coding is number 7"),
        (riff(form(bits=64), chunk(b"data", b"\0" * 8)), "integers of 64 bits; expected integers of 8 to 32"),
        (riff(form(), chunk(b"data", b"")), "holds no samples"),
        (riff(form(), chunk(b"data", b""), chunk(b"LIST", b"INFO")), "holds no samples"),
        (riff(form()), "it has no samples"),
        (riff(chunk(b"data", b"\0\0")), "its samples come before their format"),
        (riff(chunk(b"fmt ", b"\1\0")), "not PCM WAV"),
        (b"", "it has no RIFF header"),
        (b"\xff\xfb\x90d" * 99, "it has no RIFF header"),
        (riff(form(3, bits=32), chunk(b"data", stored(np.array([0, np.nan]), 3, 32))), "NaN or infinite, the first at"),
        (riff(form(3, bits=64), chunk(b"data", stored(np.array([0, 1e300]), 3, 64))), "NaN or infinite"),
    ],
)
def test_what_cannot_be_read_is_one_line(put, content, said):
    path = put(content)
    with pytest.raises(AudioError) as error:
        read_wav(path)
    assert said in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_folder_is_no_recording(tmp_path):
    with pytest.raises(AudioError, match="cannot be read"):
        read_wav(tmp_path)


def test_a_stream_of_an_impossible_rate_is_refused():
    for rate in (0, 1, 2**32 - 1):
        with pytest.raises(AudioError, match="expected 1000 to 768000 Hz"):
            Resampler(rate)


def test_the_command_goes_on_after_a_file_that_cannot_be_used(exported, tmp_path, put):
    write_wav(tmp_path / "a.wav", tone(0.5))
    write_wav(tmp_path / "b.wav", tone(0.6))
    names = ["a.wav", "none.wav", "bad.wav", "folder", "b.wav"]
    put(b"no audio", "bad.wav")
    (tmp_path / "folder").mkdir()
    run = [sys.executable, "-B", "-m", "edge", *(str(tmp_path / name) for name in names)]
    done = subprocess.run(run, cwd=exported, capture_output=True, encoding="utf-8", errors="replace", check=False)
    assert done.returncode == 1
    assert [line.split("\t")[0] for line in done.stdout.split("\n") if str(tmp_path) in line] == [
        str(tmp_path / name) for name in ("a.wav", "b.wav")
    ]
    errors = done.stderr.splitlines()
    assert len(errors) == 3
    assert all(f"{name}: " in line for name, line in zip(("none.wav", "bad.wav", "folder"), errors, strict=True))


@pytest.mark.parametrize("error", [AudioError, BundleError])
def test_a_name_that_no_line_can_hold_is_shown_as_its_escape(error):
    assert str(error("a\r\n\x1b[2J\u2028b.wav: nö")) == r"a\r\n\x1b[2J\u2028b.wav: nö"


@pytest.mark.parametrize("rate", [8_000, RATE, 44_100])
@pytest.mark.parametrize("channels", [1, 3])
def test_blocks_give_the_samples_of_the_whole(rate, channels):
    samples = np.random.default_rng(0).uniform(-1, 1, (2 * BLOCK + 7, channels)).astype(np.float32)
    recording = parse_pcm(riff(form(3, channels, rate, 32), chunk(b"data", stored(samples, 3, 32))), "x.wav")
    np.testing.assert_array_equal(resampled(recording), resample(samples.mean(1), rate))


def test_memory_is_that_of_the_result():
    content = riff(form(1, 2, RATE, 8), chunk(b"data", bytes(range(1, 255)) * 32_000))
    recording = parse_pcm(content, "x.wav")
    tracemalloc.start()
    try:
        wave = resampled(recording)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < wave.nbytes + 2e6


def test_a_value_that_is_not_finite_is_found_in_a_later_block():
    samples = np.zeros(BLOCK + RATE, np.float32)
    samples[BLOCK + 8000] = np.nan
    recording = parse_pcm(riff(form(3, bits=32), chunk(b"data", stored(samples, 3, 32))), "x.wav")
    with pytest.raises(AudioError, match=f"the first at {(BLOCK + 8000) / RATE:.3f} s"):
        resampled(recording)
