"""The demo: differences as WER counts them, every system on one clip, and the page clicked through in a browser."""

import statistics
import time

import numpy as np
import pytest

from demo.clip.cards import cards, said_html, status
from demo.clip.difference import as_html, differences, marked_html, split_words
from demo.clip.tally import Tally
from demo.clip.transcribe import Comparison, Outcome, compare, load_clip
from demo.languages import language_choices
from demo.limits import REFERENCE_CHARACTERS
from demo.live import Live
from demo.systems import Systems
from export.edge import Transcript, Word
from tests.browser import open_page
from tests.conftest import tone, until
from tests.demo.serving import choose, needs_browser, served, upload
from workbench.audio.decode import write_wav
from workbench.core.errors import UserError
from workbench.corpus import Utterance, open_corpus
from workbench.evaluation.scoring import clip_errors


def marked(reference, text, language="en"):
    return [(p.text, p.kind) for p in differences(reference, text, language)]


def test_words_are_shown_as_written_and_compared_normalized():
    assert marked("press a pound key now please", "Press the Pound key, please.") == [
        ("Press", None), ("the", "substitution"), ("Pound", None), ("key,", None), ("now", "deletion"), ("please.", None),
    ]  # fmt: skip
    assert marked("I do not", "I don't") == [("I", None), ("don't", None)]
    assert marked("twenty one dogs", "21 dogs, uh.") == [("21", None), ("dogs,", None), ("uh.", None)]
    assert marked("你好吗", "你号吗呢", "zh") == [
        ("你", None),
        ("号", "substitution"),
        ("吗", None),
        ("呢", "insertion"),
    ]
    assert marked("", "hello") == [("hello", "insertion")]
    assert marked("I'd say so", "") == [("I'd", "deletion"), ("say", "deletion"), ("so", "deletion")]


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("press the pound key now", "Press a Pound, key please now"),
        ("a b c d", "b x c"),
        ("$20 on Mr. Smith", "twenty on Smith"),
    ],
)
def test_marks_are_the_edits_of_wer(reference, text):
    from workbench.evaluation.alignment import edits, units
    from workbench.evaluation.scoring import normalize

    kinds = [edit.kind for edit in edits(*(units(normalize(t, "en"), "en") for t in (reference, text)))]
    counted = clip_errors(reference, text, "en")
    assert [kinds.count(k) for k in ("substitution", "deletion", "insertion")] == [
        counted.substitutions, counted.deletions, counted.insertions,
    ]  # fmt: skip


def test_the_longest_reference_is_compared_in_linear_time_and_only_once():
    characters = [chr(0x4E00 + i % 3000) for i in range(REFERENCE_CHARACTERS)]
    reference, text = "".join(characters), "".join(characters[::2])
    begun = time.process_time()
    pieces = differences(reference, text, "zh")
    assert time.process_time() - begun < 3  # 14 s when each missing character looked at all others
    assert [p.kind for p in pieces].count("deletion") == REFERENCE_CHARACTERS // 2
    assert "".join(p.text for p in pieces) == reference
    outcomes = {"teacher": Outcome("teacher", text, runs=({"encoder": 1.0},))}
    comparison = Comparison("teacher", 1.0, "zh", reference, 1, outcomes)
    marked_html.cache_clear()
    assert cards(comparison) == cards(comparison)
    assert marked_html.cache_info().misses == 1


def test_a_deletion_stands_where_the_word_is_missing():
    assert marked("one red apple", "one apple") == [("one", None), ("red", "deletion"), ("apple", None)]
    assert marked("the apple red", "the apple") == [("the", None), ("apple", None), ("red", "deletion")]


def test_word_times_stay_with_their_words():
    words = (Word("Press", 0.1, 0.4), Word("one,", 0.5, 0.9))
    pieces = differences("press one please", "Press one,", "en", words)
    assert [(p.text, p.start) for p in pieces] == [("Press", 0.1), ("one,", 0.5), ("please", None)]
    assert "".join(p.gap + p.text for p in split_words("Press one,", "en", words)) == "Press one,"
    assert [p.start for p in split_words("other text", "en", words)] == [
        None,
        None,
    ]  # times of other words are no one's


def test_text_from_outside_is_escaped():
    page = as_html(differences("<script> <b>", "<i>x</i> <b>", "en", (Word("<i>x</i>", 0, 1), Word("<b>", 1, 2))))
    assert "<script>" not in page
    assert "<i>" not in page
    assert "&lt;i&gt;" in page


def test_without_a_reference_a_difference_is_neutral():
    outcomes = {n: Outcome(n, t, runs=({"encoder": 1.0},)) for n, t in (("teacher", "a b"), ("student", "a c d"))}
    without = Comparison("teacher", 1.0, "en", "", 1, outcomes)
    shown = said_html(without, outcomes["student"])
    assert 'class="piece differs"' in shown
    assert "the teacher has: b" in shown
    assert not any(f'class="piece {kind}"' in shown for kind in ("substitution", "insertion", "deletion"))
    assert "mark" not in said_html(without, outcomes["teacher"])
    assert "differs from the teacher" in cards(without)
    against = Comparison("teacher", 1.0, "en", "a b", 1, outcomes)
    assert 'class="piece substitution"' in said_html(against, outcomes["student"])


def test_likely_languages_come_first_by_name():
    choices = language_choices(["de", "en", "es", "xx"], ["es"])
    assert choices[0] == ("Spanish", "es")
    assert choices[1:] == [("English", "en"), ("German", "de"), ("Xx", "xx")]


@pytest.fixture
def systems(exported):
    return Systems.open([exported], str(exported), "int8", 2)


def test_students_answer_first_then_the_teacher_then_all_run_again(systems):
    steps = list(compare(systems, tone(1.0), "hello there", "en"))
    teacher, student = systems.recognizers
    assert [list(s.outcomes) for s in steps[:2]] == [[student], [teacher, student]]
    assert steps[0].waiting == (teacher,)
    assert [tuple(len(o.runs) for o in s.outcomes.values()) for s in steps] == [
        (1,),
        (1, 1),
        (1, 2),
        (2, 2),
        (2, 3),
        (3, 3),
    ]
    assert [s.done for s in steps] == [False] * 5 + [True]
    assert "transcribing" in cards(steps[0])
    assert "1 x as fast" not in cards(steps[0])
    final = steps[-1]
    assert "median of 3 runs" in cards(final)
    for outcome in final.outcomes.values():
        assert outcome.latency_ms == sorted(outcome.runs_ms)[1]
        assert outcome.latency_ms == pytest.approx(sum(outcome.stages_ms.values()))
    assert final.speedup(teacher) == 1.0
    assert final.speedup(student) == pytest.approx(
        final.outcomes[teacher].latency_ms / final.outcomes[student].latency_ms
    )


@pytest.mark.parametrize("totals", [[7.0], [9.0, 4.0], [1.0, 9.0, 4.0], [9.0, 1.0, 4.0, 6.0]])
def test_latency_is_the_median_of_any_number_of_runs(totals):
    runs = tuple({"encoder": ms - 1, "decoder": 1.0} for ms in totals)
    outcome = Outcome("x", "text", runs=runs)
    assert outcome.latency_ms == pytest.approx(statistics.median(totals))
    assert outcome.stages_ms["decoder"] == 1.0


def test_systems_without_a_common_language_are_refused(exported, monkeypatch):
    monkeypatch.setattr(Systems, "languages", [])
    with pytest.raises(UserError, match=r"no language in common \(tiny \(teacher, fp32\): en, es; tiny"):
        Systems.open([exported], str(exported), "int8", 1)


def test_no_two_systems_work_on_clips_at_the_same_time(systems, monkeypatch):
    import threading

    busy, most, lock = 0, 0, threading.Lock()

    def slow(*_, **__):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02)
        with lock:
            busy -= 1
        return Transcript("x", "en", (), {"encoder": 1.0}, True)

    for recognizer in systems.recognizers.values():
        monkeypatch.setattr(recognizer, "transcribe", slow)
    visitors = [threading.Thread(target=lambda: list(compare(systems, tone(0.5), "", "en"))) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert most == 1


def test_the_time_of_finding_words_is_not_the_systems(systems, monkeypatch):
    transcript = Transcript(
        "x", "en", (), {"detector": 1, "features": 2, "encoder": 3, "first_token": 4, "rest": 5, "words": 90}, True
    )
    for recognizer in systems.recognizers.values():
        monkeypatch.setattr(recognizer, "transcribe", lambda *_, **__: transcript)
    for outcome in list(compare(systems, tone(0.5), "", "en"))[-1].outcomes.values():
        assert outcome.stages_ms == {"detector": 1, "features": 2, "encoder": 3, "decoder": 9}


def test_a_system_that_fails_says_so_in_its_card_and_the_other_answers(systems, monkeypatch):
    teacher, student = systems.recognizers
    monkeypatch.setattr(systems.recognizers[student], "transcribe", lambda *_, **__: 1 / 0)
    final = list(compare(systems, tone(1.0), "hello", "en"))[-1]
    assert "failed on this clip" in final.outcomes[student].problem
    assert len(final.outcomes[teacher].runs) == 3
    assert "failed on this clip" in cards(final)
    assert "Done." in status(final)


def test_whoever_waits_while_the_server_stops_gets_an_answer_and_no_traceback_is_logged(systems, caplog):
    systems.close()
    assert {o.problem for o in final(systems, tone(1.0)).outcomes.values()} == {"The server is stopping."}
    assert not caplog.records


def final(systems, wave, reference=""):
    return list(compare(systems, wave, reference, "en"))[-1]


def test_a_visitors_word_errors_add_up_and_a_clip_counts_once(systems):
    tally, teacher = Tally(), systems.teacher
    assert tally.as_html(teacher) == ""
    first = final(systems, tone(1.0), "hello there")
    tally.add(tone(1.0), first)
    tally.add(tone(1.0), first)
    tally.add(tone(0.5), final(systems, tone(0.5)))  # a clip without a reference counts nothing
    assert len(tally.clips) == 1
    assert "over the 1 clip " in tally.as_html(teacher)
    assert "from 20 clips on" in tally.as_html(teacher)
    for number in range(24):
        tally.clips[str(number)] = ("one two", "en", {teacher: "one two", "<b>": "one" if number % 2 else "one two"})
    del tally.clips[next(iter(tally.clips))]
    shown = tally.as_html(teacher)
    assert "&lt;b&gt;" in shown
    # "one two" is one word, 12, to the normalizer; of 24 with p = 0.5 (binomial), 7 to 17 are wrong in 95 % of the cases
    row = "<td>50.0</td><td>29.2 to 70.8</td><td>+50.0 (+29.2 to +70.8)</td>"
    assert f'<th scope="row">&lt;b&gt;</th>{row}' in shown
    assert "from 20 clips on" not in shown


def test_where_nobody_speaks_the_page_shows_nothing_unless_the_detector_is_off(systems, exported):
    assert [o.text for o in final(systems, tone(1.0)).outcomes.values()] == ["", ""]
    assert "no speech found" in cards(final(systems, tone(1.0)))
    off = Systems.open([exported], str(exported), "int8", 2, vad=False)
    assert all(o.text for o in final(off, tone(1.0)).outcomes.values())


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


FORMATS = {"webm": "libopus", "ogg": "libopus", "m4a": "aac", "mp3": "mp3", "flac": "flac"}


def encoded(path, wave, codec):
    """A wave as a file of the format that its name says."""
    import av

    with av.open(str(path), "w", format="ipod" if path.suffix == ".m4a" else None) as container:
        stream = container.add_stream(codec, rate=48000, layout="mono")
        resampler = av.AudioResampler(
            format=stream.format.name, layout="mono", rate=48000, frame_size=stream.codec_context.frame_size
        )
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = 16000
        for out in [*resampler.resample(frame), *resampler.resample(None)]:
            out.pts = None
            container.mux(stream.encode(out))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_browsers_and_phones_record_is_read(tmp_path, suffix):
    encoded(tmp_path / f"clip.{suffix}", tone(1.0), FORMATS[suffix])
    wave = load_clip(tmp_path / f"clip.{suffix}", 600.0)
    assert len(wave) / 16000 == pytest.approx(1.0, abs=0.15)


def test_a_recording_is_cut_the_same_for_each_system_and_run_once(systems):
    clips = [u.wave() for u in open_corpus("prompts-en", "test") if u.seconds > 3][:9]
    pause = np.zeros(8000, np.float32)
    wave = np.concatenate([part for clip in clips for part in (clip, pause)])
    assert len(wave) > 31 * 16000
    results = list(compare(systems, wave, "", "en"))
    assert len(results) == 2
    recognizer = systems.recognizers[systems.teacher]
    teacher = results[-1].outcomes[systems.teacher]
    assert teacher.text == " ".join(s.transcript.text for s in recognizer.segments(wave) if s.transcript.text)
    assert teacher.words[-1].end > 28  # the recording's times
    assert "run once" in cards(results[-1])
    # silence is transcribed by nobody, and nothing breaks
    assert [o.text for o in final(systems, np.zeros(40 * 16000, np.float32)).outcomes.values()] == ["", ""]


def test_two_bundles_of_one_name_are_refused(exported):
    with pytest.raises(UserError, match="already shown"):
        Systems.open([exported, exported], str(exported), "int8", 1)


EVIL = "<img src=x onerror=\"document.title='run'\"></script>${document.title='run'}{{1+1}}"


@needs_browser
@pytest.mark.slow
def test_a_visitor_clicks_through_the_page(systems, tmp_path, monkeypatch):
    for folder in ("elsewhere", "corpus"):  # neither is the repository, which Gradio would serve files of
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    speech = next(u for u in open_corpus("prompts-en", "test") if 2 < u.seconds < 3)
    write_wav(tmp_path / "corpus" / "clip.wav", speech.wave())
    examples = [
        Utterance(str(n), tmp_path / "corpus" / "clip.wav", text, 1.0) for n, text in enumerate(["hello", EVIL])
    ]
    with served(systems, examples) as url, open_page(url) as (browser, outside):
        complaints = []
        browser.on("console", lambda m: complaints.append(m.text) if "Content Security Policy" in m.text else None)
        browser.reload()
        browser.wait_for_selector("#transcribe")
        browser.click("#transcribe")  # before a clip is chosen
        browser.get_by_text("Choose an example, upload a recording or record one first.").wait_for()
        choose(browser, 1)
        browser.click("#transcribe")
        browser.get_by_text("Done:").wait_for(timeout=60_000)
        texts = browser.locator(".card").all_inner_texts()
        assert len(texts) == 2
        assert "tiny (int8)" in texts[0]
        assert "tiny (teacher, fp32)" in texts[1]
        assert all("median of 3 runs" in text and "encoder" in text and "wrong" in text for text in texts)
        assert "document.title" in browser.locator("#results").inner_text()  # words that nobody wrote
        assert browser.locator("#results img").count() == 0
        assert "running WER" in browser.locator("#tally").inner_text()
        with browser.expect_download() as saved:
            browser.get_by_role("link", name="JSON").click()
        assert "tiny (int8)" in saved.value.path().read_text()
        word = browser.locator("#results .word").first
        word.click()
        browser.wait_for_selector("#results .speaking")
        browser.wait_for_function("document.querySelector('#player audio').paused", timeout=10_000)
        assert browser.evaluate("document.querySelector('#player audio').currentTime") < 2.5
        browser.keyboard.press("ArrowRight")
        write_wav(tmp_path / "mine.wav", tone(1.0))
        upload(browser, tmp_path / "mine.wav")
        browser.wait_for_function("document.querySelector('#reference textarea, #reference input').value == ''")
        browser.wait_for_function("!document.querySelector('#results .card')")  # old answers are another clip's
        assert browser.locator("#player audio, #files a").count() == 0
        browser.click("#transcribe")
        browser.get_by_text("the same words as the teacher").wait_for(timeout=60_000)
        browser.get_by_text("Done").wait_for(timeout=60_000)
        (tmp_path / "list.m3u8").write_text("#EXTM3U\n/etc/hostname\n")
        upload(browser, tmp_path / "list.m3u8")
        browser.click("#transcribe")
        browser.wait_for_selector("#problem .problem")
        assert "list.m3u8: cannot be decoded as audio" in browser.locator("#problem").inner_text()
        assert browser.locator("#results .card").count() == 0
        encoded(tmp_path / "phone.webm", speech.wave(), "libopus")
        upload(browser, tmp_path / "phone.webm")
        browser.wait_for_function("!document.querySelector('#problem .problem')")
        browser.click("#transcribe")
        browser.wait_for_selector("#results .card .word", timeout=60_000)
        assert browser.title() != "run"
        assert outside == []
        assert complaints == []


@needs_browser
@pytest.mark.slow
def test_what_was_running_for_another_clip_stops(systems, monkeypatch):
    import threading

    gate = threading.Event()
    teacher = systems.recognizers[systems.teacher]
    transcribe = teacher.transcribe

    def waiting(*args, **kwargs):
        assert gate.wait(60)
        return transcribe(*args, **kwargs)

    monkeypatch.setattr(teacher, "transcribe", waiting)
    with served(systems) as url, open_page(url) as (browser, _):
        choose(browser, 1)
        browser.click("#transcribe")
        browser.wait_for_selector("#results .card.waiting")  # the student's answer is there, the teacher's is not
        assert browser.locator("#results .card:not(.waiting)").count() == 1
        choose(browser, 2)
        browser.wait_for_function("!document.querySelector('#results .card')")
        gate.set()
        browser.wait_for_timeout(1500)
        assert browser.locator("#results .card").count() == 0


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


@needs_browser
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
