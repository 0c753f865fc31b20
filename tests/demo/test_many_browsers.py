"""Twenty visitors at once, each in a browser session of their own."""

import pytest

from demo.systems import Systems
from tests.browser import CHROMIUM, FLAGS
from tests.demo.serving import choose, needs_browser, served

VISITORS = 20


@needs_browser
@pytest.mark.slow
def test_twenty_browsers_at_once_all_get_their_answers(exported):
    from playwright.sync_api import sync_playwright

    systems = Systems.open([exported], str(exported), "int8", 1)
    errors: list[str] = []
    with served(systems) as url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        pages = []
        for _ in range(VISITORS):
            page = chromium.new_context().new_page()
            page.set_default_timeout(120_000)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
            page.on("response", lambda answer: errors.append(answer.url) if answer.status >= 400 else None)
            page.goto(url)
            page.wait_for_selector("#transcribe")
            pages.append(page)
        for number, page in enumerate(pages):
            choose(page, number % 2)
        for page in pages:
            page.click("#transcribe")
        for page in pages:
            page.get_by_text("Done:").wait_for(timeout=300_000)
        texts = [tuple(page.locator("#results .said").all_inner_texts()) for page in pages]
        problems = [page.locator("#problem").inner_text() for page in pages]
        chromium.close()
    systems.close()
    assert errors == []
    assert set(problems) == {""}
    # the example that each chose, and nobody else's
    assert [len(set(texts[first::2])) for first in range(2)] == [1, 1]
    assert texts[0] != texts[1]
    assert all(len(text) == 2 for text in texts)
