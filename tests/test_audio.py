"""Audio that people really have: any rate and channels are read, what cannot be used is said in one line."""

import wave as wav

import av
import numpy as np
import pytest

from tests.conftest import tone
from workbench.audio import SAMPLE_RATE, check_length, decode, is_silent, write_wav
from workbench.errors import UserError


def encode(path, samples, rate, layout="mono", codec="pcm_s16le"):
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        pcm = (samples * 32767).astype(np.int16)
        channels = 2 if layout == "stereo" else 1
        frame = av.AudioFrame.from_ndarray(np.repeat(pcm, channels)[None], format="s16", layout=layout)
        frame.rate = rate
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


@pytest.mark.parametrize(("rate", "layout", "suffix", "codec"), [
    (8000, "mono", "wav", "pcm_s16le"), (44100, "stereo", "wav", "pcm_s16le"), (48000, "mono", "flac", "flac"),
])  # fmt: skip
def test_any_rate_and_channels_become_16_khz_mono(tmp_path, rate, layout, suffix, codec):
    path = tmp_path / f"x.{suffix}"
    encode(path, tone(1.0, rate), rate, layout, codec)
    found = decode(path)
    assert len(found) == pytest.approx(SAMPLE_RATE, abs=40)
    assert np.abs(found[1000:15000]).max() == pytest.approx(0.3, abs=0.02)
    # a 440 Hz tone stays one
    assert np.abs(np.fft.rfft(found[:16000])).argmax() == pytest.approx(440, abs=1)


def test_bytes_decode_like_their_file(tmp_path):
    write_wav(tmp_path / "x.wav", tone(0.5))
    np.testing.assert_array_equal(decode((tmp_path / "x.wav").read_bytes()), decode(tmp_path / "x.wav"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such audio file"),
        (b"", "is empty"),
        (b"RIFF", "cannot be decoded"),
        (b"hello, I am a text file\n" * 50, "cannot be decoded"),
    ],
)
def test_unusable_files_are_named_in_one_line(tmp_path, content, said):
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        decode(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wav_cut_off_at_its_header_is_named(tmp_path):
    write_wav(tmp_path / "x.wav", tone(1.0))
    cut = tmp_path / "cut.wav"
    cut.write_bytes((tmp_path / "x.wav").read_bytes()[:44])
    with pytest.raises(UserError, match=r"cut\.wav"):
        decode(cut)


def test_a_wav_cut_off_later_keeps_what_it_has(tmp_path):
    write_wav(tmp_path / "x.wav", tone(1.0))
    cut = tmp_path / "cut.wav"
    cut.write_bytes((tmp_path / "x.wav").read_bytes()[: 44 + 16000])
    assert len(decode(cut)) == 8000


def test_a_video_without_sound_is_named(tmp_path):
    path = tmp_path / "mute.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(UserError, match="no audio stream"):
        decode(path)


def test_too_short_and_too_long_are_refused():
    with pytest.raises(UserError, match=r"lasts 0\.050 s"):
        check_length(tone(0.05), "x")
    with pytest.raises(UserError, match="at most 30 s"):
        check_length(np.zeros(31 * SAMPLE_RATE, np.float32), "x")


def test_two_hours_are_refused_before_they_fill_the_memory(tmp_path):
    path = tmp_path / "long.wav"
    with wav.open(str(path), "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        file.writeframes(bytes([128]) * (2 * 3600 * 8000))
    with pytest.raises(UserError, match=r"more than 30\.0 s"):
        decode(path, longest=30.0)


def test_silence_is_recognised():
    assert is_silent(np.zeros(16000, np.float32))
    assert not is_silent(tone(0.2))
