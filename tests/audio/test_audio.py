"""Audio that people really have: any rate and channels are read, what cannot be used is said in one line."""

import inspect
import os
import wave as wav
from contextlib import contextmanager
from types import SimpleNamespace

import av
import numpy as np
import pytest

import workbench.audio.decode
from tests.conftest import tone
from workbench.audio.decode import SAMPLE_RATE, check_length, decode, is_silent, probe_seconds, write_wav
from workbench.core.errors import UserError


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


def wav_of(path, channels, rate=16_000, data_size=None):
    """16-bit WAV of any number of channels. channels: [channels, samples] in [-1, 1]"""
    pcm = (np.asarray(channels).T * 32767).astype("<i2")
    with wav.open(str(path), "wb") as file:
        file.setnchannels(pcm.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())
    return path


@pytest.mark.parametrize("channels", [2, 6, 8, 9, 16])
def test_any_number_of_channels_is_read(tmp_path, channels):
    """Eight planes or more ended the process with a segmentation fault."""
    path = wav_of(tmp_path / "many.wav", [tone(1.0) if c == 0 else np.zeros(16000) for c in range(channels)])
    found = decode(path)
    assert len(found) == 16000
    np.testing.assert_allclose(found, tone(1.0) / channels, atol=1e-4)


def test_of_channels_that_cancel_the_loudest_is_taken(tmp_path):
    path = wav_of(tmp_path / "antiphase.wav", [tone(1.0), -tone(1.0)])
    np.testing.assert_allclose(decode(path), tone(1.0), atol=1e-4)
    silent = wav_of(tmp_path / "silent.wav", np.zeros((2, 16000)))
    assert is_silent(decode(silent))


def test_length_is_the_sounds_not_the_videos_or_the_headers(tmp_path):
    path = tmp_path / "long_video.mp4"
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("mpeg4", rate=5), out.add_stream("aac", rate=16000, layout="mono")
        video.width = video.height = 64
        for _ in range(50):  # ten seconds
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            out.mux(video.encode(picture))
        sound = av.AudioFrame.from_ndarray(tone(2.0)[None].astype(np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        out.mux(audio.encode(sound))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    assert probe_seconds(path) == pytest.approx(2.0, abs=0.15)
    assert probe_seconds(path) == pytest.approx(len(decode(path)) / SAMPLE_RATE, abs=0.15)


def test_a_variable_bit_rate_without_a_header_does_not_fool_the_length(tmp_path):
    """A start of few bits and an end of many: from the first frames' bit rate the length was guessed far too long."""
    parts = []
    for seconds, bit_rate in ((10, 32_000), (5, 320_000)):
        part = tmp_path / f"{bit_rate}.mp3"
        with av.open(str(part), "w", options={"write_xing": "0", "id3v2_version": "0"}) as out:
            stream = out.add_stream("libmp3lame", rate=44100, layout="mono")
            stream.bit_rate = bit_rate
            frame = av.AudioFrame.from_ndarray(np.zeros((1, seconds * 44100), np.float32), format="fltp", layout="mono")
            frame.rate = 44100
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        parts.append(part.read_bytes())
    path = tmp_path / "vbr.mp3"
    path.write_bytes(b"".join(parts))
    with av.open(str(path)) as container:
        assert abs(container.duration / av.time_base - 15.0) > 1.0  # what the container says
    assert (
        probe_seconds(path) == pytest.approx(len(decode(path)) / SAMPLE_RATE, abs=0.1) == pytest.approx(15.0, abs=0.2)
    )


def test_a_playlist_opens_no_other_file(tmp_path):
    write_wav(tmp_path / "secret.wav", tone(1.0))
    for name, text in (
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile secret.wav\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="cannot be decoded as audio"):
            decode(tmp_path / name)
        with pytest.raises(UserError, match="cannot be decoded as audio"):
            probe_seconds(tmp_path / name)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e29])
def test_samples_that_are_no_sound_are_refused(tmp_path, value):
    path = tmp_path / "bad.wav"
    wave = tone(0.5).astype("<f4")
    wave[100] = value
    header = b"RIFF" + (36 + 4 * len(wave)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += (3).to_bytes(2, "little") + (1).to_bytes(2, "little") + (16000).to_bytes(4, "little")
    header += (64000).to_bytes(4, "little") + (4).to_bytes(2, "little") + (32).to_bytes(2, "little")
    path.write_bytes(header + b"data" + (4 * len(wave)).to_bytes(4, "little") + wave.tobytes())
    with pytest.raises(UserError, match=r"bad\.wav: holds samples that are NaN, infinite or above 100"):
        decode(path)


@pytest.mark.parametrize("rate", [4, 4_000_000])
def test_an_impossible_rate_is_refused_before_it_fills_the_memory(tmp_path, rate):
    path = wav_of(tmp_path / "rate.wav", [tone(0.1)], rate)
    with pytest.raises(UserError, match=f"has a sample rate of {rate:,} Hz; expected 1,000 to 768,000 Hz"):
        decode(path)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    for path in (tmp_path / "fifo.wav", tmp_path / "zero.wav", tmp_path):
        for use in (decode, probe_seconds):
            with pytest.raises(UserError, match=r"is not a regular file|is a folder"):
                use(path)
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(UserError, match="no such audio file"):
            decode(tmp_path / name)


def test_a_recording_of_many_hours_is_refused_with_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.audio.decode.LONGEST_RECORDING_HOURS", 1 / 3600)
    write_wav(tmp_path / "long.wav", tone(1.5))
    with pytest.raises(UserError, match=r"lasts more than 1\.0 s, expected at most 1 s"):
        probe_seconds(tmp_path / "long.wav")
    assert inspect.signature(decode).parameters["longest"].default == 6 * 3600
    with pytest.raises(UserError, match=r"expected at most 1 s"):
        decode(tmp_path / "long.wav", longest=1.0)


@pytest.mark.parametrize("rate", [4, 1_000_000])
def test_the_rate_of_a_frame_is_checked_as_the_headers_is(tmp_path, monkeypatch, rate):
    path = tmp_path / "x.wav"
    write_wav(path, tone(0.2))
    frame = av.AudioFrame.from_ndarray(tone(0.2)[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    opened = workbench.audio.decode._opened

    @contextmanager
    def other(source, label):
        with opened(source, label):
            yield SimpleNamespace(decode=lambda **_: [frame])

    monkeypatch.setattr("workbench.audio.decode._opened", other)
    with pytest.raises(UserError, match=f"has a sample rate of {rate:,} Hz"):
        decode(path)


def test_a_codec_that_is_not_known_is_named(tmp_path):
    write_wav(tmp_path / "x.wav", tone(0.2))
    data = bytearray((tmp_path / "x.wav").read_bytes())
    data[34:36] = b"\0\0"  # no bits a sample
    for use in (decode, probe_seconds):
        with pytest.raises(UserError):
            use(bytes(data))
