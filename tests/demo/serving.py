"""The page served for a test, and what a visitor does in a browser."""

import contextlib
import socket

import pytest

from demo.app import build, launch
from demo.limits import DemoLimits, private_folder
from tests.browser import CHROMIUM
from workbench.corpus import open_corpus

LIMITS = DemoLimits()
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")


@contextlib.contextmanager
def served(systems, examples=None, limits=LIMITS):
    """Address of the page, served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with private_folder(limits.keep_minutes):
        page = build(systems, examples or open_corpus("prompts-en", "test")[:4], limits)
        launch(page, "127.0.0.1", port, limits, prevent_thread_lock=True, quiet=True)
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            page.run.stop()
            page.blocks.close()


def choose(browser, number):
    """Choose an example."""
    browser.click("#example input")
    browser.locator("[role=option]").nth(number).click()
    browser.wait_for_function("document.querySelector('#reference textarea, #reference input').value != ''")
    browser.wait_for_selector("#clip [aria-label*=lear], #clip button[title*=lear]")


def upload(browser, path):
    """Replace the clip by an upload."""
    browser.click("#clip [aria-label*=lear], #clip button[title*=lear]")
    browser.set_input_files("#clip input[type=file]", str(path))
    browser.wait_for_selector("#clip [aria-label*=lear], #clip button[title*=lear]")
