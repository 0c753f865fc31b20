"""The server as a process: what it loads, how it ends, what it says where it cannot start."""

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest

from export.edge import Recognizer
from export.serving.options import ServerOptions
from export.serving.server import open_recognizers
from tests.serving.conftest import free_port, wav_bytes
from workbench.audio.decode import write_flac
from workbench.cli import app as cli

WITHOUT_TORCH = """
import importlib.abc, sys
class Refused(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "scipy", "onnx", "pyarrow", "datasets", "safetensors", "tokenizers"}:
            raise ModuleNotFoundError(f"{name} is not to be imported", name=name)
sys.meta_path.insert(0, Refused())
import workbench.cli.app
workbench.cli.app.main()
"""


@contextlib.contextmanager
def process(bundle, *options, code=None):
    """`workbench serve` in a process of its own, and its address."""
    port = free_port()
    command = [sys.executable, *(("-c", code) if code else ("-m", "workbench")), "serve", str(bundle), "--threads", "1"]
    with subprocess.Popen([*command, "--port", str(port), *options], stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if line.startswith("serving on "):
                    break
            assert lines, "it said nothing"
            assert f"http://127.0.0.1:{port}/v1" in lines[-1], lines
            server.said = lines[-1]
            yield server, f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def send(url, content, name="clip.wav"):
    return httpx.post(
        f"{url}/v1/audio/transcriptions", data={"model": "tiny"}, files={"file": (name, content)}, timeout=60
    )


def test_it_runs_where_neither_torch_nor_transformers_can_be_imported(exported, clips, tmp_path):
    write_flac(tmp_path / "clip.flac", clips[0].wave)
    with process(exported, code=WITHOUT_TORCH) as (_, url):
        assert send(url, clips[0].content).status_code == 200
        assert send(url, (tmp_path / "clip.flac").read_bytes(), "clip.flac").status_code == 200


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_it_soon_and_every_request_is_answered_or_refused(exported, clips, sent):
    recording = wav_bytes(np.concatenate([clip.wave for clip in clips] * 6))  # takes much longer than is left
    answers = []

    def ask(url, content):
        answers.append(send(url, content))

    with process(exported, "--language", "en") as (server, url):
        contents = [clips[0].content, recording, *(clip.content for clip in clips)]
        threads = [threading.Thread(target=ask, args=(url, content)) for content in contents]
        threads[0].start()
        threads[0].join()
        for thread in threads[1:]:
            thread.start()
        end = time.monotonic() + 30
        while len(answers) + 1 + httpx.get(url + "/health").json()["queue"]["length"] < len(threads):  # all are there
            assert time.monotonic() < end
        began = time.monotonic()
        server.send_signal(sent)
        assert server.wait(20) == 0
        took = time.monotonic() - began
        for thread in threads:
            thread.join()
        rest = server.stderr.read()
    assert took < 6  # about 1.5 s on an idle machine
    assert "Traceback" not in rest
    assert {answer.status_code for answer in answers} == {200, 503}
    assert len(answers) == len(threads)
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.json()["error"]["code"] == "shutting_down"
    assert refused.headers["retry-after"]


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["workbench", "serve", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err


def test_what_keeps_it_from_starting_is_a_line(exported, monkeypatch, capsys):
    monkeypatch.setattr("export.serving.server.run", lambda _: pytest.fail("it serves"))
    monkeypatch.setenv("EMPTY_KEY", " ")
    for words, said in (
        (["--api-key", "sk-secret"], "--api-key: no such environment variable"),
        (["--api-key", "EMPTY_KEY"], "--api-key: the environment variable is empty"),
        (["--precision", "int9"], "did you mean 'int8'?"),
        (["--language", "xx"], "known: auto, en, es"),
        (["--workers", "0"], "'--workers'"),
        (["--max-seconds", "nan"], "'--max-seconds'"),
    ):
        status, error = run(monkeypatch, capsys, exported, "--port", free_port(), *words)
        assert status == 2
        assert re.search(r"^error: |^Error: ", error, re.MULTILINE | re.IGNORECASE)
        assert said in " ".join(error.replace("│", " ").split())
        assert "sk-secret" not in error


def test_missing_packages_are_named(exported):
    code = WITHOUT_TORCH.replace('"torch"', '"fastapi"')
    done = subprocess.run([sys.executable, "-c", code, "serve", exported], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: fastapi is not installed; pip install 'distill-workbench[cpu,serve]'\n"


def test_the_key_comes_from_the_environment(exported, monkeypatch):
    started = []
    monkeypatch.setattr("export.serving.server.serve", lambda *given: started.append(given[1].api_key))
    for variables, words in (
        ({"WORKBENCH_API_KEY": "one", "OTHER": "two"}, []),
        ({"WORKBENCH_API_KEY": "one", "OTHER": "two"}, ["--api-key", "OTHER"]),
        ({}, []),
    ):
        monkeypatch.delenv("WORKBENCH_API_KEY", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["workbench", "serve", str(exported), "--port", str(free_port()), *words])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
    assert started == ["one", "two", ""]


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_a_key_that_is_set_but_blank_does_not_open_the_server(exported, monkeypatch, capsys, value):
    monkeypatch.setattr("export.serving.server.serve", lambda *_: pytest.fail("it serves"))
    monkeypatch.setenv("WORKBENCH_API_KEY", value)
    status, error = run(monkeypatch, capsys, exported, "--port", free_port())
    assert status == 2
    assert error == "error: WORKBENCH_API_KEY is empty; set it to the key; unset it to ask for none\n"


@pytest.mark.parametrize(("variables", "said"), [({"KEY": "one"}, "key required"), ({}, "no key required")])
def test_the_first_line_says_whether_a_key_is_asked_for(exported, monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with process(exported, *(["--api-key", "KEY"] if variables else [])) as (server, url):
        assert server.said == f"serving on {url}/v1, {said}; end it with Ctrl-C\n"


def test_threads_are_those_of_the_processors_that_it_may_use(exported, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    threads = []

    class Noted(Recognizer):
        def __init__(self, bundle, precision, number, **how):
            threads.append(number)
            super().__init__(bundle, precision, 1, **how)

    monkeypatch.setattr("export.serving.server.Recognizer", Noted)
    open_recognizers(exported, ServerOptions(workers=2, language="en"))
    assert threads == [3, 3]
