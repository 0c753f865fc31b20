"""The server's process: recognizers opened and warmed up, requests served until it is interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import numpy as np
import uvicorn
from fastapi import FastAPI

from export.edge import BundleError, Recognizer, read_manifest
from export.edge.audio import SAMPLE_RATE
from export.edge.recognizer import AUTO
from export.serving.app import build
from export.serving.options import ServerOptions
from workbench.core.errors import UserError, did_you_mean
from workbench.core.machine.host import usable_cpus

LAST_SECONDS = 2  # after which connections are cut when the server ends


def serve(bundle: Path, options: ServerOptions, host: str, port: int) -> None:
    """Open a bundle and serve it until Ctrl-C or SIGTERM; raises UserError if it cannot be opened or the port is taken."""
    # from now on, because a container's first process gets no other handler; uvicorn raises its signal again when it has ended
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app = build(open_recognizers(bundle, options), options)
    config = uvicorn.Config(
        app, host, port, log_config=None, log_level="warning", access_log=False, server_header=False, lifespan="off",
        timeout_graceful_shutdown=LAST_SECONDS,
    )  # fmt: skip
    try:
        with contextlib.suppress(KeyboardInterrupt):  # the usual way to end it
            run(_Server(config, app, options))
    finally:
        if app.state.pool.shut():  # a graph that runs cannot be stopped, and Python would wait for its thread
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def open_recognizers(bundle: Path, options: ServerOptions) -> list[Recognizer]:
    """One recognizer for each worker, warmed up: a graph's first run is slow. Raises UserError."""
    threads = options.threads or max(1, usable_cpus() // options.workers)
    try:
        manifest = read_manifest(bundle)
        precision = options.precision or manifest.precisions[-1]
        if precision not in manifest.precisions:
            raise UserError(f"{bundle}: --precision {precision!r}{did_you_mean(precision, manifest.precisions)}")
        known = manifest.content["tokens"]["prompts"]
        if options.language not in (AUTO, *known):
            raise UserError(
                f"{bundle}: --language {options.language!r}{did_you_mean(options.language, (AUTO, *known))}"
            )
        opened = [
            # the first one compares the files with their checksums
            Recognizer(bundle, precision, threads, check=not number, vad=options.vad)
            for number in range(options.workers)
        ]
        for recognizer in opened:
            recognizer.transcribe(np.zeros(SAMPLE_RATE, np.float32), next(iter(recognizer.prompts)), vad=False)
    except BundleError as error:
        raise UserError(str(error)) from None
    return opened


def run(server: _Server) -> None:
    """Serve until a signal comes; a function of its own so that tests can replace it."""
    server.run()


class _Server(uvicorn.Server):
    """Says when it is ready, and closes the pool as soon as it is asked to end."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, options: ServerOptions) -> None:
        super().__init__(config)
        self.access = "key required" if options.api_key else "no key required"
        self.pool = app.state.pool
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and then a line."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            sys.stderr.write(f"serving on http://{host}:{self.config.port}/v1, {self.access}; end it with Ctrl-C\n")
            sys.stderr.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn's, after the pool was told: what waits is refused, what is under way is finished if that takes a moment only."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.pool.close)
        super().handle_exit(sig, frame)
