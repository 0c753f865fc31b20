"""A server in a thread, and clips to send to it."""

import contextlib
import io
import socket
import threading
from dataclasses import dataclass, field

import numpy as np
import openai
import pytest
import uvicorn

from export.edge.audio import SAMPLE_RATE, resampled
from export.edge.audio.wav import parse_pcm
from export.serving.app import build
from export.serving.options import ServerOptions
from export.serving.server import open_recognizers
from tests.conftest import until
from workbench.audio.decode import write_wav
from workbench.corpus import open_corpus


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wav_bytes(wave):
    file = io.BytesIO()
    write_wav(file, wave)
    return file.getvalue()


@contextlib.contextmanager
def serving(bundle, **options):
    """A client of a server with these options; `app` is its application."""
    given = ServerOptions(threads=1, **options)
    app = build(open_recognizers(bundle, given), given)
    port = free_port()
    config = uvicorn.Config(app, "127.0.0.1", port, log_config=None, lifespan="off", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0) as client:
            client.app, client.url = app, f"http://127.0.0.1:{port}"
            yield client
    finally:
        server.should_exit = True
        thread.join(20)
        app.state.pool.shut()


@dataclass
class Clip:
    content: bytes  # WAV
    text: str
    wave: np.ndarray = field(init=False)  # as the runtime reads it
    seconds: float = field(init=False)

    def __post_init__(self):
        self.wave = resampled(parse_pcm(self.content, "clip.wav"))
        self.seconds = len(self.wave) / SAMPLE_RATE


@pytest.fixture(scope="session")
def clips():
    """Ten short clips of speech, with their texts."""
    found = [u for u in open_corpus("prompts-en", "validation") if 1 < u.seconds < 2.5][:10]
    return [Clip(wav_bytes(u.wave()), u.text) for u in found]
