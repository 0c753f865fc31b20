"""The page's named endpoints, called as docs/demo.md shows."""

import concurrent.futures
import string

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from tests.demo.serving import served
from workbench.corpus import open_corpus


@pytest.fixture(scope="module")
def address(shared):
    with served(shared) as url:
        yield url


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


@pytest.fixture(scope="module")
def clip():
    return next(u for u in open_corpus("prompts-en", "test") if 1 < u.seconds < 2)


def test_endpoints_are_named_and_no_others_are_shown(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {
        "/systems",
        "/transcribe",
        "/compare",
        "/corpus",
    }


def test_systems_are_described(client):
    teacher, student = client.predict(api_name="/systems")
    assert (teacher["role"], teacher["name"], student["name"]) == ("teacher", "tiny (teacher, fp32)", "tiny (int8)")
    assert student["size_mb"] > 0
    assert student["languages"] == ["en", "es"]


def test_a_clip_is_transcribed_with_word_times(client, clip):
    found = client.predict(audio=handle_file(str(clip.audio)), api_name="/transcribe")
    assert found["name"] == "tiny (int8)"
    assert found["seconds"] == pytest.approx(clip.seconds, abs=0.01)
    assert found["text"]
    assert all(0 <= word["start"] <= word["end"] <= clip.seconds + 0.1 for word in found["words"])
    other = client.predict(audio=handle_file(str(clip.audio)), system="tiny (teacher, fp32)", api_name="/transcribe")
    assert other["name"] == "tiny (teacher, fp32)"


def test_systems_are_compared(client, clip):
    found = client.predict(audio=handle_file(str(clip.audio)), reference=clip.text, runs=5, api_name="/compare")
    teacher, student = found["systems"]
    assert found["normalizer"].startswith("whisper-en/")
    assert len(student["runs_ms"]) == 5
    assert student["latency_ms"] == pytest.approx(sorted(student["runs_ms"])[2], abs=0.02)
    assert student["speedup"] == pytest.approx(teacher["latency_ms"] / student["latency_ms"], rel=0.01)
    errors = student["errors"]
    assert errors["wer"] == pytest.approx(
        100 * (errors["substitutions"] + errors["deletions"] + errors["insertions"]) / errors["length"], abs=0.01
    )
    assert client.predict(audio=handle_file(str(clip.audio)), api_name="/compare")["systems"][0]["errors"] is None
    assert client.predict(api_name="/corpus")["done"] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"language": "xx"}, "language 'xx'"), ({"runs": 0}, "runs 0"), ({"runs": 1000}, "runs 1000"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_said(client, clip, given, said):
    with pytest.raises(AppError, match=said):
        client.predict(audio=handle_file(str(clip.audio)), **given, api_name="/compare")


def test_a_missing_clip_and_an_unknown_system_are_said(client, clip):
    with pytest.raises(AppError, match="upload a recording"):
        client.predict(audio=None, api_name="/compare")
    with pytest.raises(AppError, match="system 'none'"):
        client.predict(audio=handle_file(str(clip.audio)), system="none", api_name="/transcribe")


def test_twenty_clients_at_once_all_get_an_answer(address, clip):
    def visit(number):
        client = Client(address, verbose=False, httpx_kwargs={"timeout": 120})  # all share this process with the server
        return client.predict(audio=handle_file(str(clip.audio)), runs=1, api_name="/compare")

    with concurrent.futures.ThreadPoolExecutor(20) as visitors:
        found = list(visitors.map(visit, range(20)))
    texts = {tuple(system["text"] for system in one["systems"]) for one in found}
    assert len(texts) == 1
    assert all(len(system["runs_ms"]) == 1 for one in found for system in one["systems"])


def test_hotwords_are_given_to_every_system(client, clip):
    plain = client.predict(audio=handle_file(str(clip.audio)), runs=1, api_name="/compare")
    found = client.predict(
        audio=handle_file(str(clip.audio)), runs=1, hotwords=",".join(string.ascii_letters), api_name="/compare"
    )
    for before, after in zip(plain["systems"], found["systems"], strict=True):
        assert before["text"] != after["text"], before["name"]
    with pytest.raises(AppError, match=r"hotword 1 .* has 200 bytes"):
        client.predict(audio=handle_file(str(clip.audio)), hotwords="a" * 200, api_name="/compare")
    with pytest.raises(AppError, match="hotwords have 2001 characters"):
        client.predict(audio=handle_file(str(clip.audio)), hotwords="a" * 2001, api_name="/compare")
