"""Middleware before Gradio's routes: limits request sizes and delivers microphone blocks in order."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from gradio.queueing import Event

JSON_BYTES = 1_000_000  # of any request that is not an upload
CLOSED = re.compile(r"/(process_recording$|component_server|vibe-|file=\w+:|file/\w+:|proxy=)")  # not used by the page
STREAM = re.compile(r"/stream/(\w+)$")
ITERATIONS = 10  # of the event loop, more than Gradio needs from noticing a block to reading it


def fetch_nothing() -> None:
    """Make Gradio reject a URL in place of an upload: it would fetch it, whatever its size and from whatever network (SSRF)."""
    import gradio as gr

    async def refused(*_: object, **__: object) -> str:
        raise gr.Error("expected an uploaded recording, not a URL", print_exception=False)

    gr.processing_utils.async_ssrf_protected_download = refused


class Guard:
    """Middleware (ASGI).

    Args:
        app: Gradio's.
        upload_bytes: maximum size of an upload request.
    """

    def __init__(self, app: ASGIApp, upload_bytes: int) -> None:
        self.app, self.upload_bytes = app, upload_bytes
        self.turns: WeakKeyDictionary[Event, asyncio.Lock] = WeakKeyDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject a request or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        most = self.upload_bytes if path.endswith("/upload") else JSON_BYTES
        refusal = f"the request exceeds the limit of {most / 1e6:g} MB"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if CLOSED.search(path):
            await PlainTextResponse("not part of this page", 404)(scope, receive, send)
            return
        if not length.isdigit() or int(length) > most:
            await PlainTextResponse(refusal, 413)(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:  # a request without Content-Length
                raise HTTPException(413, refusal)
            return message

        block = STREAM.search(path) if scope["method"] == "POST" else None
        if block is None:
            await self.app(scope, counted, send)
            return
        event = scope["app"].get_blocks()._queue.event_ids_to_events.get(block[1])
        # Gradio keeps only the latest block: one that arrives before the previous one has been read would replace it.
        async with self.turns.setdefault(event, asyncio.Lock()) if event else contextlib.nullcontext():
            if event is None or not await _read(event):
                await PlainTextResponse("this stream is over", 404)(scope, receive, send)
                return
            await self.app(scope, counted, send)


async def _read(event: Event) -> bool:
    """Wait until a stream's last block has been read; False if the stream is over."""
    while event.signal.is_set():
        if event.is_finished or not event.alive:
            return False
        await asyncio.sleep(0.01)
    for _ in range(ITERATIONS):
        await asyncio.sleep(0)
    return True
