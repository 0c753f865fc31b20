"""The demo: differences as WER counts them, both systems on one clip, and the page clicked through in a browser."""

import contextlib
import socket

import numpy as np
import pytest

from demo.app import build, cards, launch
from demo.difference import as_html, differences
from demo.limits import DemoLimits, private_folder
from demo.live import Live
from demo.session import RunningWer, Systems, compare, load_clip
from tests.browser import CHROMIUM, open_page
from tests.conftest import tone, until
from workbench.audio.decode import write_wav
from workbench.core.errors import UserError
from workbench.corpus import Utterance, open_corpus
from workbench.evaluation.scoring import word_errors


def test_differences_are_the_edits_of_wer():
    pieces = differences("Press the pound key, please.", "press a pound key now please")
    assert pieces == [
        ("press", None), ("a", "substitution"), ("pound key", None), ("now", "insertion"), ("please", None),
    ]  # fmt: skip
    assert differences("one two", "one") == [("1", None), ("2", "deletion")] or word_errors("1 2", "1").deletions == 1


def test_text_from_outside_is_escaped():
    page = as_html([("<script>", None), ("<b>", "insertion")])
    assert "<script>" not in page
    assert "&lt;b&gt;" in page


@pytest.fixture
def systems(exported):
    return Systems.open([exported], str(exported), "int8", 2)


def test_each_system_transcribes_and_errors_add_up(systems):
    tally = RunningWer()
    first = compare(systems, tone(1.0), "hello there", "en", tally)
    assert [r.name for r in first] == ["tiny (teacher, fp32)", "tiny (int8)"]
    assert first[0].speedup == 1.0
    assert all(r.latency_ms > 0 and r.compared_with == "reference" for r in first)
    compare(systems, tone(0.5), "you", "en", tally)
    assert tally.words == 3
    without = compare(systems, tone(0.5), "", "en", tally)
    assert tally.words == 3  # a clip without a reference counts nothing
    assert [r.compared_with for r in without] == ["", "teacher"]
    assert "tiny (int8)" in cards(without, 0.5)


def test_where_nobody_speaks_the_page_shows_nothing_unless_the_detector_is_off(systems, exported):
    assert [r.text for r in compare(systems, tone(1.0), "", "en", RunningWer())] == ["", ""]
    off = Systems.open([exported], str(exported), "int8", 2, vad=False)
    assert all(r.text for r in compare(off, tone(1.0), "", "en", RunningWer()))


def test_sessions_count_apart():
    assert RunningWer() is not RunningWer()
    assert RunningWer().errors == {}


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (tone(0.05), "at least 0.1 s"),
        (np.zeros(16000, np.float32), "is silent"),
        (np.resize(tone(1.0), 601 * 16000), "at most 600 s"),
    ],
)
def test_clips_that_cannot_be_used_are_named(tmp_path, samples, said):
    write_wav(tmp_path / "clip.wav", samples)
    with pytest.raises(UserError, match=rf"clip\.wav.*{said}"):
        load_clip(tmp_path / "clip.wav", 600.0)


def test_a_recording_is_cut_the_same_for_each_system(systems):
    clips = [u.wave() for u in open_corpus("prompts-en", "test") if u.seconds > 3][:9]
    pause = np.zeros(8000, np.float32)
    wave = np.concatenate([part for clip in clips for part in (clip, pause)])
    assert len(wave) > 31 * 16000
    results = compare(systems, wave, "", "en", RunningWer())
    recognizer = next(iter(systems.recognizers.values()))
    assert results[0].text == " ".join(s.transcript.text for s in recognizer.segments(wave) if s.transcript.text)
    assert results[0].latency_ms == pytest.approx(sum(results[0].stages_ms.values()))
    # silence is transcribed by nobody, and nothing breaks
    assert [r.text for r in compare(systems, np.zeros(40 * 16000, np.float32), "", "en", RunningWer())] == ["", ""]


def test_two_bundles_of_one_name_are_refused(exported):
    with pytest.raises(UserError, match="already shown"):
        Systems.open([exported, exported], str(exported), "int8", 1)


LIMITS = DemoLimits()


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
            page.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
@pytest.mark.slow
def test_a_visitor_clicks_through_the_page(systems, tmp_path, monkeypatch):
    for folder in ("elsewhere", "corpus"):  # neither is the repository, which Gradio would serve files of
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_wav(tmp_path / "corpus" / "clip.wav", tone(1.0))
    evil = "<img src=x onerror=\"document.title='run'\"></script>${document.title='run'}{{1+1}}"
    examples = [Utterance(n, tmp_path / "corpus" / "clip.wav", text, 1.0) for n, text in enumerate(["hello", evil])]
    with served(systems, examples) as url, open_page(url) as (browser, outside):
        browser.wait_for_selector("#transcribe")
        browser.click("#transcribe")  # before a clip is chosen
        browser.get_by_text("Choose an example, upload a recording or record one first.").wait_for()
        browser.click("#example input")
        browser.locator("[role=option]").nth(1).click()
        browser.wait_for_function("document.querySelector('#reference textarea, #reference input').value != ''")
        browser.click("#transcribe")
        browser.wait_for_selector(".card", timeout=60_000)
        texts = browser.locator(".card").all_inner_texts()
        assert len(texts) == 2
        assert "tiny (teacher, fp32)" in texts[0]
        assert all(" ms" in text and "running WER" in text for text in texts)
        assert "document title run" in browser.locator("#results").inner_text()  # words that nobody wrote
        assert browser.locator("#results img").count() == 0
        write_wav(tmp_path / "mine.wav", tone(1.0))
        browser.click("#clip [aria-label*=lear], #clip button[title*=lear]")
        browser.set_input_files("#clip input[type=file]", str(tmp_path / "mine.wav"))
        browser.wait_for_function("document.querySelector('#reference textarea, #reference input').value == ''")
        browser.click("#transcribe")
        browser.get_by_text("differences from the teacher").wait_for(timeout=60_000)
        (tmp_path / "list.m3u8").write_text("#EXTM3U\n/etc/hostname\n")
        browser.click("#clip [aria-label*=lear], #clip button[title*=lear]")
        browser.set_input_files("#clip input[type=file]", str(tmp_path / "list.m3u8"))
        browser.wait_for_selector("#clip [aria-label*=lear], #clip button[title*=lear]")
        browser.click("#transcribe")
        browser.wait_for_selector("#problem .problem")
        assert "list.m3u8: cannot be decoded as audio" in browser.locator("#problem").inner_text()
        assert browser.locator("#results .card").count() == 0
        assert browser.title() != "run"
        # Gradio's own template asks for one script that it needs only inside a frame of another site
        assert [url for url in outside if "iframe-resizer" not in url] == []


def spoken(systems, seconds=3.0):
    """Speech and a pause, at 48 kHz."""
    wave = next(u.wave() for u in open_corpus("prompts-en", "test") if u.seconds > 2)[:32000]
    return np.repeat(np.concatenate([wave, np.zeros(24000, np.float32)]), 3)


def test_a_microphone_is_heard_by_each_system_block_by_block(systems):
    loud = spoken(systems)
    live = Live(systems, list(systems.recognizers), "en", 48000)
    for block in np.array_split(loud, 20):
        live.hear(block)
    live.hear(loud[:0])
    assert live.seconds == pytest.approx(len(loud) / 48000)
    live.finish()
    until(lambda: live.done)
    assert [len(q.said) for q in live.queues.values()] == [1, 1]
    assert all(q.busy_ms > q.slowest_ms > 0 and not q.saying and q.behind == 0 for q in live.queues.values())
    said = live.as_html()
    live.hear(loud)  # comes late, and is not heard
    live.finish()
    assert live.as_html() == said
    assert 'data-state="over"' in said


def test_somebody_has_to_listen(systems):
    with pytest.raises(UserError, match="no system is selected"):
        Live(systems, [], "en", 16000)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
@pytest.mark.slow
def test_a_visitor_speaks_and_the_page_writes_along(systems, tmp_path):
    wave = np.concatenate([u.wave() for u in open_corpus("prompts-en", "test") if u.seconds > 2][:2])
    write_wav(tmp_path / "speech.wav", wave)
    with served(systems) as url, open_page(url, says=tmp_path / "speech.wav") as (browser, _):
        browser.get_by_role("tab", name="Live").click()
        browser.get_by_label("tiny (int8)").uncheck()
        browser.locator("#microphone button:has-text('Record')").first.click()
        browser.get_by_text("no system is selected; tick at least one").wait_for()
        browser.locator("#microphone button:has-text('Stop')").first.click()
        browser.get_by_label("tiny (int8)").check()
        browser.get_by_label("tiny (teacher, fp32)").check()
        browser.locator("#microphone button:has-text('Record')").first.click()
        browser.wait_for_selector("#heard .saying", timeout=60_000)
        browser.locator("#microphone button:has-text('Stop')").first.click()
        browser.wait_for_selector("#heard [data-state=over]", timeout=60_000)
        assert browser.locator("#heard .card").count() == 2
        assert "nothing yet" not in browser.locator("#heard").inner_text()
