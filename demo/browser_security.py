"""Middleware: what the browser may load and run on this page, and the files that the page has beside Gradio's."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.corpus.audio import CorpusAudio
from workbench.core.errors import UserError

STATIC = Path(__file__).parent / "static"
SCRIPT = STATIC / "page.js"
# Nothing from anywhere else, not even a font. Scripts: Gradio's files, and its inline ones by a nonce that each answer changes, so that
# markup that slipped through could not run any. 'unsafe-eval', because Gradio's HTML component compiles its template in the browser.
POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; manifest-src 'self'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'self'; object-src 'none'"
)
# Gradio 6.16 asks a CDN for a script and connects to a font server beforehand, which no policy forbids.
ELSEWHERE = re.compile(
    rb"""<(?:script|link)\b[^>]*?\s(?:src|href)\s*=\s*["']?(?:https?:)?//[^>]*>(?:\s*</script>)?""", re.IGNORECASE
)
# A report is a file of the user's, or came with a bundle: it may show itself, but runs no script, loads nothing and cannot reach this page.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class BrowserSecurity:
    """Middleware (ASGI).

    Args:
        app: Gradio's.
        reports: pages served as /report/0, /report/1, ...
        clips: the corpus's clips, served as /clip/0.wav, ...
    """

    def __init__(self, app: ASGIApp, reports: Sequence[Path], clips: CorpusAudio) -> None:
        self.app, self.reports, self.clips = app, reports, clips
        self.script = SCRIPT.read_bytes()
        self.version = hashlib.sha256(self.script).hexdigest()[:12]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one of the page's own files, or pass the request on and add headers to the answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        nonce = secrets.token_urlsafe(16)
        policy = {"Content-Security-Policy": POLICY.format(nonce=nonce), **HEADERS}
        path = scope["path"]
        if scope["method"] in ("GET", "HEAD") and (own := await self._own_file(path, scope)) is not None:
            for name, value in policy.items():
                own.headers.setdefault(name, value)
            await own(scope, receive, send)
        elif path == "/" and scope["method"] == "GET":
            await self._page(scope, receive, send, nonce, policy)
        else:
            await self.app(scope, receive, _with(policy, send))

    async def _own_file(self, path: str, scope: Scope) -> Response | None:
        if path == "/page.js":
            return Response(self.script, media_type="text/javascript", headers={"Cache-Control": "no-cache"})
        if found := re.fullmatch(r"/report/(\d{1,4})", path):
            if int(found[1]) >= len(self.reports) or not (report := self.reports[int(found[1])]).is_file():
                return PlainTextResponse("no such report", 404)
            return Response(
                report.read_bytes(),
                media_type="text/html; charset=utf-8",
                headers={"Content-Security-Policy": REPORT_POLICY},
            )
        if found := re.fullmatch(r"/clip/(\d{1,7})\.wav", path):
            if int(found[1]) >= len(self.clips):
                return PlainTextResponse("no such clip", 404)
            try:
                content = await run_in_threadpool(self.clips.wav, int(found[1]))
            except UserError:
                return PlainTextResponse("this clip cannot be read", 404)
            return _ranged(content, scope)
        return None

    async def _page(self, scope: Scope, receive: Receive, send: Send, nonce: str, policy: Mapping[str, str]) -> None:
        """The page itself: every script of its template gets the nonce, and the page's own script is added."""
        # whole and uncompressed, because it is edited here
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        started: Message = {}
        body = b""

        async def edited(message: Message) -> None:
            nonlocal started, body
            if message["type"] == "http.response.start":
                started = message
                return
            body += message.get("body", b"")
            if message.get("more_body", False):
                return
            local = ELSEWHERE.sub(b"", body)
            marked = re.sub(rb"<script(?=[\s>])", f'<script nonce="{nonce}"'.encode(), local)
            own = f'<script nonce="{nonce}" src="page.js?{self.version}" defer></script></head>'.encode()
            marked = marked.replace(b"</head>", own, 1)
            MutableHeaders(raw=started["headers"])["content-length"] = str(len(marked))
            sending = _with(policy, send)
            await sending(started)
            await sending({"type": "http.response.body", "body": marked})

        await self.app({**scope, "headers": headers}, receive, edited)


def _with(policy: Mapping[str, str], send: Send) -> Send:
    """`send` that adds the headers."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            for name, value in policy.items():
                headers[name] = value
        await send(message)

    return sending


def _ranged(content: bytes, scope: Scope) -> Response:
    """A WAV file, or the part of it that the browser asks for: without that, it cannot jump to a word."""
    # another corpus on the same port has other clips of the same number, so the browser asks whether it still has the right one
    version = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, no-cache", "ETag": version}
    given = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if version in given.get(b"if-none-match", ""):
        return Response(status_code=304, headers=headers)
    asked = given.get(b"range", "") if given.get(b"if-range", version) == version else ""
    if found := re.fullmatch(r"bytes=(\d{1,12})-(\d{0,12})", asked):
        first = int(found[1])
        last = min(int(found[2] or len(content) - 1), len(content) - 1)
        if first > last:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return Response(content[first : last + 1], 206, headers, "audio/wav")
    return Response(content, 200, headers, "audio/wav")
