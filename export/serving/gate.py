"""Middleware before the routes: the API key, the size of an upload and the time it may take, a place in the queue."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from export.serving.errors import ApiError
from export.serving.metrics import Metrics
from export.serving.options import ServerOptions
from export.serving.pool import Pool

TRANSCRIPTIONS = "/v1/audio/transcriptions"
OPEN = ("/health",)  # for health checks, which have no key
FORM_BYTES = 64_000  # of a request besides the recording
UPLOAD_SECONDS = 120.0  # that a request's body may take
log = logging.getLogger("workbench")


class Gate:
    """Middleware (ASGI).

    Args:
        app: the routes.
        pool: where a place is taken for each transcription, before its recording is received.
        metrics: counts the answers.
        options: the key and the largest request.
    """

    def __init__(self, app: ASGIApp, pool: Pool, metrics: Metrics, options: ServerOptions) -> None:
        self.app, self.pool, self.metrics = app, pool, metrics
        self.key, self.most = options.api_key.encode(), round(options.max_megabytes * 1e6) + FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] != TRANSCRIPTIONS or scope["method"] != "POST":
            try:
                self._check_key(scope)
            except ApiError as error:
                await self._refuse(error, scope, receive, send)
                return
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_key(scope)
            self._check_size(Headers(scope=scope))
            with self.pool.place() as place:
                scope.setdefault("state", {})["place"] = place  # for the route, as `request.state.place`
                await self.app(scope, self._limited(receive), noted)
                self.metrics.latency.observe(time.monotonic() - began)
        except ApiError as error:
            await self._refuse(error, scope, receive, noted)
        except Exception:  # a bug, which is answered outside of this middleware
            status = status or 500
            self.metrics.latency.observe(time.monotonic() - began)
            raise
        finally:
            self.metrics.requests.labels(status or "none").inc()
            log.info("%s %s, %.2f s", TRANSCRIPTIONS, status or "no answer", time.monotonic() - began)

    def _check_key(self, scope: Scope) -> None:
        if not self.key or scope["path"] in OPEN:
            return
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self.key):
            raise ApiError(
                401, "The API key is missing or wrong; send it as `Authorization: Bearer KEY`.", "invalid_api_key"
            )

    def _check_size(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.most:
            raise ApiError(413, self._too_large(), "request_too_large", "file")

    def _too_large(self) -> str:
        return f"The request is too large; expected a file of at most {(self.most - FORM_BYTES) / 1e6:g} MB."

    def _limited(self, receive: Receive) -> Receive:
        """The body as it comes in, up to the limits of size and time."""
        taken, complete = 0, False
        deadline = asyncio.get_running_loop().time() + UPLOAD_SECONDS

        async def limited() -> Message:
            nonlocal taken, complete
            if complete:  # what follows is that the client has gone
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"The upload took more than {UPLOAD_SECONDS:g} s.") from None
            taken += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > self.most:  # a request without Content-Length
                raise HTTPException(413, self._too_large())
            return message

        return limited

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        self.metrics.errors.labels(error.code).inc()
        await error.response()(scope, receive, send)
