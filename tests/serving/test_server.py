"""The server as OpenAI's own client and curl see it, on a tiny bundle."""

import concurrent.futures
import json
import os
import socket
import struct
import threading
import time

import httpx
import numpy as np
import openai
import pytest

from export.edge import Recognizer, format_segments
from export.serving import app, audio, gate, pool
from tests.conftest import tone, until
from tests.serving.conftest import Clip, serving, wav_bytes
from workbench.audio.decode import decode, write_flac
from workbench.core.errors import UserError

PAUSE, GROUPS = np.zeros(8_000, np.float32), np.zeros(48_000, np.float32)  # within groups of clips, and between


@pytest.fixture(scope="module")
def server(exported):
    with serving(exported, workers=2, language="en", aliases=("whisper-1",), max_seconds=60, max_megabytes=4) as client:
        yield client


@pytest.fixture(scope="module")
def recognizer(exported):
    return Recognizer(exported, "int8", 1)


@pytest.fixture(scope="module")
def recording(clips):
    """Half a minute and more: groups of clips with short pauses, which are longer than a cue, and long pauses between groups."""
    parts = [part for i, clip in enumerate(clips + clips[:5]) for part in (clip.wave, GROUPS if i % 5 == 4 else PAUSE)]
    found = Clip(wav_bytes(np.concatenate(parts)), "")
    assert 30 < found.seconds < 60
    return found


def ask(client, content, name="clip.wav", **fields):
    return client.audio.transcriptions.create(model="tiny", file=(name, content), **fields)


def post(client, fields=None, files=None, **how):
    fields = {"model": "tiny"} if fields is None else fields
    files = {"file": ("clip.wav", wav_bytes(tone(1.0)))} if files is None else files
    return httpx.post(f"{client.url}/v1/audio/transcriptions", data=fields, files=files, timeout=60, **how)


def test_ten_clips_at_once_have_the_recognizers_texts(server, recognizer, clips):
    wanted = [recognizer.transcribe(clip.wave, "en").text for clip in clips]
    assert len(set(wanted)) > 5  # random, but not one text for all
    with concurrent.futures.ThreadPoolExecutor(10) as threads:
        found = list(threads.map(lambda clip: ask(server, clip.content).text, clips))
    assert found == wanted


def test_verbose_json_has_segments_and_words(server, recognizer, clips):
    content = clips[0].content
    said = recognizer.transcribe(clips[0].wave, "en", words=True)
    found = ask(server, content, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert (found.text, found.language) == (said.text, "en")
    assert found.duration == pytest.approx(clips[0].seconds, abs=0.01)
    assert [(w.word, w.start, w.end) for w in found.words] == [(w.text, w.start, w.end) for w in said.words]
    (segment,) = found.segments
    assert (segment.id, segment.start, segment.text, segment.tokens) == (0, 0.0, said.text, list(said.tokens))
    only = ask(server, content, response_format="verbose_json", timestamp_granularities=["word"])
    assert only.words
    assert only.segments is None
    plain = ask(server, content, response_format="verbose_json")
    assert plain.segments
    assert plain.words is None


def test_a_recording_is_cut_and_streamed_stretch_by_stretch(server, recognizer, recording):
    rows = list(recognizer.segments(recording.wave, "en"))
    assert len(rows) > 1
    whole = ask(server, recording.content)
    assert whole.text == " ".join(row.transcript.text for row in rows)
    verbose = ask(
        server, recording.content, response_format="verbose_json", timestamp_granularities=["segment", "word"]
    )
    assert [(s.start, s.end) for s in verbose.segments] == [(round(r.start, 3), round(r.end, 3)) for r in rows]
    assert verbose.words[-1].start > rows[1].start
    events = list(ask(server, recording.content, stream=True))
    assert [e.type for e in events] == ["transcript.text.delta"] * len(rows) + ["transcript.text.done"]
    assert "".join(e.delta for e in events[:-1]) == events[-1].text == whole.text
    raw = post(server, {"model": "tiny", "stream": "true"}, {"file": ("a.wav", recording.content)})
    assert raw.headers["content-type"].startswith("text/event-stream")


def test_subtitles_and_text_are_the_runtimes(server, recognizer, recording, clips):
    rows = list(recognizer.segments(recording.wave, "en", longest=7.0))
    for kind in ("srt", "vtt"):
        assert ask(server, recording.content, response_format=kind) == format_segments(rows, "", kind)
    assert all(row.end - row.start <= 7 for row in rows)
    assert len(rows) > len(list(recognizer.speech_spans(recording.wave)))
    said = recognizer.transcribe(clips[1].wave, "en").text
    assert ask(server, clips[1].content, response_format="text") == said + "\n"


def test_silence_has_no_text_and_no_cue(server):
    content = wav_bytes(np.zeros(32_000, np.float32))
    assert ask(server, content).text == ""
    assert ask(server, content, response_format="srt") == ""
    assert ask(server, content, response_format="verbose_json").segments == []
    assert [e.type for e in ask(server, content, stream=True)] == ["transcript.text.done"]


@pytest.mark.parametrize(
    ("fields", "status", "code", "param", "said"),
    [
        ({}, 400, "missing_parameter", "model", "'model' is missing"),
        ({"model": "tony"}, 404, "model_not_found", "model", "did you mean 'tiny'?"),
        ({"response_format": "diarized_json"}, 400, "invalid_value", "response_format", "json, verbose_json, text, srt or vtt"),
        ({"temperature": "0.2"}, 400, "invalid_value", "temperature", "expected 0"),
        ({"temperature": "nan"}, 400, "invalid_value", "temperature", "expected 0"),
        ({"temperature": "hot"}, 400, "invalid_value", "temperature", "valid number"),
        ({"stream": "perhaps"}, 400, "invalid_value", "stream", "boolean"),
        ({"stream": "true", "response_format": "srt"}, 400, "invalid_value", "stream", "json or text"),
        ({"language": "xx"}, 400, "invalid_value", "language", "en or es"),
        ({"prompt": "Hello."}, 400, "invalid_value", "prompt", "leave it out"),
        ({"chunking_strategy": "server_vad"}, 400, "invalid_value", "chunking_strategy", "'auto'"),
        ({"timestamp_granularities[]": "word"}, 400, "invalid_value", "timestamp_granularities[]", "'verbose_json'"),
        ({"timestamp_granularities[]": "letter", "response_format": "verbose_json"}, 400, "invalid_value", "timestamp_granularities[]", "segment or word"),
        ({"respons_format": "srt"}, 400, "unknown_parameter", "respons_format", "did you mean 'response_format'?"),
        ({"language": ["en", "es"]}, 400, "invalid_value", "language", "2 times"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_one_sentence(server, fields, status, code, param, said):
    answer = post(server, {"model": "tiny", **fields} if fields else {})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]
    assert "\n" not in error["message"]


def test_right_fields_that_change_nothing_are_accepted(server):
    fields = {"model": "whisper-1", "temperature": "0", "prompt": " ", "chunking_strategy": "auto", "language": "EN"}
    assert post(server, fields).status_code == 200


def test_a_request_without_a_file_or_with_two_is_refused(server):
    assert post(server, files={"x": b""}).json()["error"]["param"] in ("file", "x")
    both = [("file", ("a.wav", wav_bytes(tone(1.0)))), ("file", ("b.wav", wav_bytes(tone(1.0))))]
    assert "2 times" in post(server, files=both).json()["error"]["message"]
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", json={"model": "tiny"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "missing_parameter")


def header(rate, width, channels, size):
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * width, channels * width, 8 * width)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + size)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + head
        + b"data"
        + struct.pack("<I", size)
    )


NAN = header(16_000, 4, 1, 64_000).replace(struct.pack("<HH", 1, 1), struct.pack("<HH", 3, 1), 1)
FILES = {
    "empty.wav": (b"", 400, "empty"),
    "short.wav": (wav_bytes(tone(0.05)), 400, "at least 0.1 s"),
    "noise.mp3": (os.urandom(5000), 415, "cannot be decoded"),
    "list.m3u8": (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", 415, "cannot be decoded"),
    "long.wav": (wav_bytes(np.zeros(61 * 16_000, np.float32)), 413, "at most 60 s"),
    "slow.wav": (header(1000, 1, 1, 500_000) + bytes(500_000), 413, "at most 60 s"),
    "nan.wav": (NAN + np.full(16_000, np.nan, np.float32).tobytes(), 415, "NaN"),
    "a\nb.wav": (b"RIFF", 415, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_used_is_one_sentence(server, name):
    content, status, said = FILES[name]
    with pytest.raises(openai.APIStatusError) as refused:
        ask(server, content, name)
    assert refused.value.status_code == status
    assert refused.value.param == "file"
    assert said in refused.value.message
    assert "\n" not in refused.value.message


def test_other_formats_need_pyav(server, recognizer, clips, tmp_path, monkeypatch):
    write_flac(tmp_path / "clip.flac", clips[0].wave)
    content = (tmp_path / "clip.flac").read_bytes()
    assert ask(server, content, "clip.flac").text == recognizer.transcribe(decode(content), "en").text
    monkeypatch.setattr(audio, "reads_all_formats", lambda: False)
    with pytest.raises(openai.APIStatusError, match="pip install av") as refused:
        ask(server, content, "clip.flac")
    assert refused.value.status_code == 415
    assert ask(server, clips[0].content).text


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_upload_is_refused_and_the_client_is_told(server, announced):
    for _ in range(5):
        if announced:
            with pytest.raises(openai.APIStatusError) as refused:
                ask(server, bytes(30_000_000))
            answer = refused.value.response
        else:
            body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + bytes(30_000_000)
            pieces = (body[i : i + 65536] for i in range(0, len(body), 65536))
            how = {"Content-Type": "multipart/form-data; boundary=x"}
            answer = httpx.post(f"{server.url}/v1/audio/transcriptions", content=pieces, headers=how, timeout=60)
        assert answer.status_code == 413
        assert "at most 4 MB" in answer.json()["error"]["message"]


def test_an_upload_that_does_not_end_loses_its_place(server, monkeypatch):
    monkeypatch.setattr(gate, "UPLOAD_SECONDS", 0.5)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n"
        connection.sendall((head + "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n").encode())
        until(lambda: server.app.state.pool.admitted == 1)
        answer = ""
        while more := connection.recv(9999).decode():  # head and body may come apart
            answer += more
            if "0.5 s" in answer:
                break
    assert answer.startswith("HTTP/1.1 408 ")
    assert "0.5 s" in answer
    until(lambda: server.app.state.pool.admitted == 0)


def test_models_and_other_paths(server):
    assert [model.id for model in server.models.list()] == ["tiny", "whisper-1"]
    assert server.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        server.models.retrieve("whisper-2")
    for path, status in (("/v1/audio/speech", 404), ("/", 404), ("/docs", 404), ("/v1/audio/transcriptions", 405)):
        answer = httpx.get(server.url + path)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"
    schema = httpx.get(server.url + "/openapi.json").json()
    assert "/v1/audio/transcriptions" in schema["paths"]


def metric(client, name):
    lines = httpx.get(client.url + "/metrics").text.splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + " ")), 0.0)


def test_health_and_metrics(server, clips):
    health = httpx.get(server.url + "/health").json()
    assert health["status"] == "ok"
    assert (health["model"], health["precision"]) == ("tiny", "int8")
    assert health["queue"] == {"length": 0, "max": 16}

    names = (
        'workbench_requests_total{status="200"}', 'workbench_requests_total{status="404"}',
        'workbench_errors_total{code="model_not_found"}', "workbench_audio_seconds_total", "workbench_request_seconds_count",
    )  # fmt: skip
    before = {name: metric(server, name) for name in names}
    ask(server, clips[0].content)
    post(server, {"model": "other"})
    grown = [metric(server, name) - before[name] for name in names]
    assert grown == pytest.approx([1, 1, 1, clips[0].seconds, 2], abs=0.01)
    assert metric(server, "workbench_queue_length") == 0


def test_a_key_is_asked_for(exported, clips):
    content = clips[0].content
    with serving(exported, api_key="geheim-ü", language="en") as client:
        for key in ("wrong", "", "geheim", "geheim-u"):
            with pytest.raises(openai.AuthenticationError) as refused:
                ask(client.with_options(api_key=key or "x"), content)
            assert refused.value.code == "invalid_api_key"
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            assert httpx.get(client.url + path).status_code == 401
        assert post(client, headers={"Authorization": "Basic geheim"}).status_code == 401
        assert httpx.get(client.url + "/health").status_code == 200
        header = {"Authorization": "Bearer geheim-ü".encode()}
        assert httpx.get(client.url + "/v1/models", headers=header).status_code == 200
        assert post(client, headers=header).status_code == 200


class Slow:
    """Holds every transcription until it is let go; notes the lengths of what was transcribed, in order."""

    def __init__(self, monkeypatch):
        self.go, self.seen, real = threading.Event(), [], Recognizer.transcribe

        def transcribe(recognizer, wave, *args, **kwargs):
            self.seen.append(len(wave))
            assert self.go.wait(60)
            with monkeypatch.context() as patch:  # what follows a loop is transcribed by the real method
                patch.setattr(Recognizer, "transcribe", real)
                return real(recognizer, wave, *args, **kwargs)

        monkeypatch.setattr(Recognizer, "transcribe", transcribe)


@pytest.fixture
def one_worker(exported, monkeypatch):
    with serving(exported, language="en", max_queue=2) as client:
        client.slow = Slow(monkeypatch)
        yield client
        client.slow.go.set()


def queue(client):
    return httpx.get(client.url + "/health").json()["queue"]["length"]


def test_a_full_queue_refuses_and_health_still_answers(one_worker, clips):
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        accepted = [threads.submit(ask, one_worker, clip.content) for clip in clips[:3]]
        until(lambda: queue(one_worker) == 2)
        with pytest.raises(openai.RateLimitError) as refused:
            ask(one_worker, clips[3].content)
        assert refused.value.code == "queue_full"
        assert int(refused.value.response.headers["retry-after"]) >= 1
        one_worker.slow.go.set()
        assert all(one.result().text for one in accepted)
    until(lambda: queue(one_worker) == 0)
    assert ask(one_worker, clips[3].content).text


def test_a_client_that_leaves_gives_its_place_back_and_is_not_transcribed(one_worker, clips):
    lengths = [len(clip.wave) for clip in clips]
    assert len(set(lengths[:2])) == 2
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, one_worker, clips[0].content)
        until(lambda: len(one_worker.slow.seen) == 1)
        for how in ({}, {"stream": True}):
            with pytest.raises(openai.APITimeoutError):
                list(ask(one_worker.with_options(timeout=0.5), clips[1].content, **how))
            until(lambda: queue(one_worker) == 0)
        one_worker.slow.go.set()
        assert first.result().text
    assert one_worker.slow.seen == lengths[:1]


def test_a_long_recording_lets_others_in_between_its_stretches(one_worker, recording, clips):
    clip = clips[0].wave
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        long = threads.submit(ask, one_worker, recording.content)
        until(lambda: len(one_worker.slow.seen) == 1)
        short = threads.submit(ask, one_worker, wav_bytes(clip))
        until(lambda: queue(one_worker) == 1)
        time.sleep(0.2)  # until it has been decoded
        one_worker.slow.go.set()
        assert short.result().text
        assert long.result().text
    assert one_worker.slow.seen.index(len(clip)) == 1 < len(one_worker.slow.seen) - 1


def test_a_prompt_is_ignored_where_that_is_allowed(exported):
    with serving(exported, ignore_prompt=True, language="en") as client:
        assert post(client, {"model": "tiny", "prompt": "Hello."}).status_code == 200


def test_a_bug_is_an_error_in_openais_form_without_details(one_worker, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("secret")

    monkeypatch.setattr(Recognizer, "transcribe", fails)
    answer = post(one_worker)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"
    until(lambda: metric(one_worker, 'workbench_requests_total{status="500"}') == 1)
    assert metric(one_worker, 'workbench_requests_total{status="none"}') == 0
    assert metric(one_worker, 'workbench_errors_total{code="internal_error"}') == 1
    assert metric(one_worker, "workbench_request_seconds_count") == 1
    (event,) = post(one_worker, {"model": "tiny", "stream": "true"}).text.split("\n\n")[:-1]
    assert json.loads(event.removeprefix("data: "))["error"] == answer.json()["error"]
    assert metric(one_worker, 'workbench_errors_total{code="internal_error"}') == 2


def test_the_language_of_the_server_is_used(exported, clips, recognizer):
    content = clips[0].content
    with serving(exported, language="es") as client:
        assert ask(client, content).text == recognizer.transcribe(clips[0].wave, "es").text
        found = ask(client, content, language="auto", response_format="verbose_json")
        assert found.language == recognizer.transcribe(clips[0].wave, "auto").language
        assert json.loads(found.to_json())["task"] == "transcribe"


def test_neither_a_files_name_nor_its_codes_are_logged(server, clips, caplog):
    assert ask(server, clips[0].content[:-8000], "patient-smith\x1b[2J.wav").text
    assert "an upload is cut off; it has " in caplog.text
    assert "patient" not in caplog.text
    assert "\x1b" not in caplog.text


def test_a_client_that_leaves_while_its_recording_is_decoded_is_not_transcribed(one_worker, clips, monkeypatch):
    go, seen, real = threading.Event(), [], audio.read_recording

    def read(*given):
        seen.append(given)
        assert go.wait(60)
        return real(*given)

    monkeypatch.setattr(app, "read_recording", read)
    used = one_worker.app.state.pool
    with pytest.raises(openai.APITimeoutError):
        ask(one_worker.with_options(timeout=0.5), clips[0].content)
    until(lambda: used.admitted == 0)
    assert len(seen) == 1
    assert used.memory.free == used.memory.most - used.largest  # as long as the thread works
    go.set()
    until(lambda: used.memory.free == used.memory.most)
    assert not one_worker.slow.seen


def test_a_recording_is_decoded_once_there_is_memory_for_it(exported, clips, monkeypatch):
    monkeypatch.setattr(pool, "MORE_RECORDINGS", 0)
    seen, real = [], audio.read_recording
    monkeypatch.setattr(app, "read_recording", lambda *given: seen.append(given[1]) or real(*given))
    with serving(exported, language="en", max_seconds=3) as client, concurrent.futures.ThreadPoolExecutor(2) as threads:
        slow = Slow(monkeypatch)
        first = threads.submit(ask, client, clips[0].content, "first.wav")
        until(lambda: len(slow.seen) == 1)
        for how in ({}, {"stream": True}):
            with pytest.raises(openai.APITimeoutError):
                list(ask(client.with_options(timeout=0.5), clips[1].content, "gone.wav", **how))
            until(lambda: queue(client) == 0)
        later = threads.submit(ask, client, clips[2].content, "later.wav")
        until(lambda: queue(client) == 1)
        time.sleep(0.2)
        assert seen == ["first.wav"]
        slow.go.set()
        assert first.result().text
        assert later.result().text
        assert seen == ["first.wav", "later.wav"]
        until(lambda: client.app.state.pool.memory.free == client.app.state.pool.memory.most)


def test_hotwords_of_a_request_come_before_those_of_the_server(exported, clips, recognizer, tmp_path):
    (tmp_path / "words.txt").write_text("zebra\n")
    with serving(exported, language="en", hotwords=tmp_path / "words.txt", hotwords_score=20.0) as client:
        mine = {"extra_body": {"hotwords": "quokka, yak"}}
        for given, words in ({}, ["zebra"]), (mine, ["quokka", "yak"]):
            said = recognizer.transcribe(clips[0].wave, "en", hotwords=recognizer.new_hotwords(words, 20))
            assert words[0] in said.text.lower()
            assert ask(client, clips[0].content, **given).text == said.text
        for hotwords, wrong in ("a" * 101, "101 bytes"), ("word, " * 1000, "6000 characters"):
            answer = post(client, {"model": "tiny", "hotwords": hotwords})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "hotwords")
            assert wrong in answer.json()["error"]["message"]


def test_unlikely_texts_are_left_out(exported, clips):
    with serving(exported, language="en", min_logprob=-1e-9) as client:
        assert ask(client, clips[0].content).text == ""
    with (
        pytest.raises(UserError, match="min_logprob is 1; expected a number up to 0"),
        serving(exported, min_logprob=1),
    ):
        pass


def test_a_wrong_file_of_hotwords_is_said_before_anything_is_served(exported, tmp_path):
    with (
        pytest.raises(UserError, match=r"none\.txt: cannot be read"),
        serving(exported, hotwords=tmp_path / "none.txt"),
    ):
        pass
