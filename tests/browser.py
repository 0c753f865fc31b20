"""A real headless Chromium for tests of pages."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@contextlib.contextmanager
def open_page(
    url: str, width: int = 1280, height: int = 900, says: Path | None = None
) -> Iterator[tuple[Any, list[str]]]:
    """A page, and the addresses beyond this machine that it asked for; into its microphone a WAV file is played over and over."""
    from playwright.sync_api import sync_playwright

    outside: list[str] = []
    with sync_playwright() as playwright:
        microphone = [
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={says}",
        ]
        flags = [*FLAGS, *(microphone if says else [])]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, env={**os.environ})
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("request", lambda r: outside.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
        page.goto(url)
        yield page, outside
        browser.close()
