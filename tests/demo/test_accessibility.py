"""What axe-core finds on the page, on a desktop and on a phone, in light and dark; and its use without a mouse."""

from pathlib import Path

import pytest

from demo.systems import Systems
from tests.browser import CHROMIUM, FLAGS
from tests.demo.serving import choose, needs_browser, served

AXE = Path(__file__).parent / "node" / "node_modules" / "axe-core" / "axe.min.js"
FIND = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations
    .filter(found => ["serious", "critical"].includes(found.impact))
    .map(found => `${found.id}: ${found.nodes.map(node => node.html.slice(0, 200)).join("; ")}`)"""


@needs_browser
@pytest.mark.skipif(not AXE.is_file(), reason="no axe-core here; npm ci --prefix tests/demo/node")
@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (390, "dark"), (390, "light")])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_screen(exported, width, theme):
    from playwright.sync_api import sync_playwright

    systems = Systems.open([exported], str(exported), "int8", 1)
    with served(systems) as url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        # axe is put into the page, which the page's own policy would refuse
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, bypass_csp=True)
        page = context.new_page()
        page.goto(f"{url}?__theme={theme}")
        page.wait_for_selector("#transcribe")
        page.evaluate(AXE.read_text("utf-8"))

        def check(tab):
            page.wait_for_timeout(500)  # colours change gradually
            assert page.evaluate(FIND) == [], tab
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab

        choose(page, 0)
        page.click("#transcribe")
        page.get_by_text("Done:").wait_for(timeout=60_000)
        check("clip")
        page.get_by_role("tab", name="Live").click()
        check("live")
        page.get_by_role("tab", name="Corpus").click()
        page.click("#corpus-start")
        page.wait_for_selector("details.entry", timeout=60_000)
        page.locator("details.entry summary").first.click()
        check("corpus")
        page.get_by_role("tab", name="Blind").click()
        page.click("#blind-draw")
        page.wait_for_selector("#blind-pair .card", timeout=60_000)
        page.click("#blind-A")
        page.wait_for_selector("#blind-counts table")
        check("blind")
        chromium.close()
    systems.close()


@needs_browser
@pytest.mark.slow
def test_words_are_reached_and_heard_with_the_keyboard(exported, monkeypatch):
    from export.edge import Transcript, Word
    from tests.browser import open_page

    systems = Systems.open([exported], str(exported), "int8", 1)
    said = tuple(Word(text, start, start + 0.2) for text, start in (("one", 0.0), ("two", 0.3), ("three", 0.6)))
    for recognizer in systems.recognizers.values():
        monkeypatch.setattr(
            recognizer,
            "transcribe",
            lambda *_, **__: Transcript("one two three", "en", (), {"encoder": 1.0}, True, words=said),
        )
    with served(systems) as url, open_page(url) as (page, _):
        page.wait_for_selector("#transcribe")
        choose(page, 0)
        page.locator("#transcribe").focus()
        page.keyboard.press("Enter")
        page.get_by_text("Done:").wait_for(timeout=60_000)
        assert page.locator("#results .said").first.locator("[tabindex='0']").count() == 1
        page.locator("#results .word[tabindex='0']").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert "three" in page.evaluate("document.activeElement.textContent")
        page.keyboard.press("Home")
        assert "one" in page.evaluate("document.activeElement.textContent")
        page.keyboard.press("End")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "[...document.querySelectorAll('#results .speaking')].some(w => w.textContent.includes('three'))"
        )
        assert page.locator("#status[aria-live=polite]").count() == 1
    systems.close()
