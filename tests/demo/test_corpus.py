"""A whole split: run once for all, worst clips first, by kind of error, aligned."""

import json
import re
import threading
from types import SimpleNamespace

import gradio as gr
import pytest

from demo.blind.preferences import Pair, Preference, check_preferences_file, count, draw_pair
from demo.blind.tab import Judging, blind_tab, counts_html, pair_html
from demo.clip.transcribe import Comparison, Outcome
from demo.corpus import run as corpus_run
from demo.corpus import table
from demo.corpus.run import CorpusRun, Row
from demo.corpus.tab import corpus_tab
from demo.corpus.table import aligned_html, progress_html, summary_html, worst_html
from demo.limits import private_folder
from tests.browser import open_page
from tests.conftest import tone, until
from tests.demo.serving import needs_browser, served
from workbench.audio.decode import write_wav
from workbench.core.errors import UserError
from workbench.corpus import Utterance, open_corpus

EVIL = "<img src=x>"


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)).strip()


def written(run, reference, teacher, student):
    """A row of what two systems wrote."""
    names = list(run.systems.recognizers)
    texts = dict(zip(names, (teacher, student), strict=True))
    outcomes = {n: Outcome(n, t, runs=({"encoder": 1.0},)) for n, t in texts.items()}
    clip = Utterance(f"{EVIL}{len(run.rows)}", b"", reference, 1.0)
    comparison = Comparison(names[0], 1.0, "en", reference, 1, outcomes)
    run.rows.append(Row(len(run.rows), clip, comparison, {n: comparison.errors(n) for n in names}))


@pytest.fixture
def run(shared):
    """A run whose transcripts are given."""
    made = CorpusRun(shared, [])
    written(made, "open the red door", "open the red door", "open a red door")  # a substitution, 25 %
    written(made, "close the door", "close door", "close the door")
    written(made, f"stop {EVIL}", f"stop {EVIL}", "stop the the music now please")
    written(made, "go back home", "go back home", "go home")  # a deletion, 33 %
    return made


def test_worst_clips_come_first_and_errors_are_filtered_by_kind(run):
    teacher, student = run.systems.recognizers
    assert [row.number for row in run.worst(student)] == [2, 3, 0]
    assert [row.number for row in run.worst(student, "deletion")] == [3]
    assert 0 in [row.number for row in run.worst(student, "substitution")]
    assert 3 not in [row.number for row in run.worst(student, "substitution")]
    assert [row.number for row in run.worst(teacher)] == [1]
    assert [row.number for row in run.worst(student, "insertion")] == [2]


def test_the_table_counts_and_escapes(run):
    student = run.systems.students[0]
    shown = worst_html(run, student, None) + summary_html(run)
    assert EVIL not in shown
    assert "&lt;img" in shown
    assert "3 clips with errors" in text_of(shown)
    assert "1 deletion" in text_of(worst_html(run, student, "deletion"))
    assert "No insertions of" in worst_html(run, run.systems.teacher, "insertion")
    assert "The first 1 are shown." in worst_html(run, student, None, 1)
    assert worst_html(run, student, None, 1).count("<details") == 1
    entries = {entry["name"]: entry for entry in run.summary()}
    assert entries[student]["kinds"]["deletion"] == 1
    assert entries[run.systems.teacher]["kinds"] == {"substitution": 0, "deletion": 1, "insertion": 0}
    assert run.as_json()["worst_first"][0]["errors"][student]["insertion"] > 0


def test_transcripts_are_aligned_with_the_reference(run):
    teacher, student = run.systems.recognizers
    columns = [
        text_of(c)
        for c in re.findall(
            r'<span class="column [^"]*">(.*?)</span></span>', aligned_html(run.rows[0], [student, teacher])
        )
    ]
    assert columns[1:] == ["open open open", "the a the", "red red red", "door door door"]
    gone = aligned_html(run.rows[3], [student, teacher])
    assert '<span>back</span><span><del class="deletion" title="deletion">' in gone
    more = aligned_html(run.rows[2], [student, teacher])
    assert '<mark class="insertion"' in more


def test_a_split_is_transcribed_once_and_goes_on_where_it_stopped(shared, tmp_path):
    write_wav(tmp_path / "clip.wav", tone(1.0))
    (tmp_path / "damaged.wav").write_bytes(b"nothing")
    speech = [u for u in open_corpus("prompts-en", "test") if 1 < u.seconds < 2][:3]
    damaged = Utterance("damaged", tmp_path / "damaged.wav", "words", 1.0)
    foreign = Utterance("foreign", tmp_path / "clip.wav", "Wort", 1.0, "de")
    run = CorpusRun(shared, [speech[0], damaged, foreign, *speech[1:]])
    assert progress_html(run) == ""
    run.start(3)
    until(lambda: not run.running)
    assert (run.at, [row.clip.id for row in run.rows]) == (3, [speech[0].id])
    assert "damaged" in run.skipped[0]
    assert "no system of this page supports its language, de" in run.skipped[1]
    assert "3 of 3 clips" in progress_html(run)
    run.start(100)
    run.start(100)
    until(lambda: not run.running)
    assert [row.number for row in run.rows] == [0, 3, 4]
    assert all(len(o.runs) == 1 for row in run.rows for o in row.comparison.outcomes.values())


def test_a_visitor_is_sent_what_has_changed_with_the_choices_of_the_moment(run, monkeypatch):
    with gr.Blocks() as page, gr.Tabs() as tabs, gr.Tab("Corpus"):
        corpus_tab(tabs, run, "a corpus")
    functions = list(page.fns.values())
    assert not any(one.types_generator for one in functions)  # none lasts as long as the run
    draw = next(one.fn for one in functions if ("tick" in {event for _, event in one.targets}))
    teacher, student = run.systems.recognizers
    unchanged = gr.skip()
    run.at, run.wanted = len(run.rows), 30
    monkeypatch.setattr(run, "_thread", threading.current_thread())
    progress, _, listed, drawn = draw(student, "any error", 25)
    assert "4 of 30 clips, transcribing" in progress
    assert "3 clips with errors" in listed
    assert draw(student, "any error", 25, drawn) == (unchanged,) * 4
    assert f"1 clip with errors of {teacher}" in draw(teacher, "any error", 25, drawn)[2]  # another choice, at once
    for number in range(5, 15):
        written(run, f"word {number}", "word", "word")
        run.at = number
        progress, _, listed, drawn = draw(student, "any error", 25, drawn)
        assert f"{number} of 30 clips" in progress
        assert (listed == unchanged) == (number < 14)  # drawn when ten clips have come
    written(run, "the last", "last one", "last one")
    run.at = run.wanted = 15
    monkeypatch.setattr(run, "_thread", None)
    _, _, listed, drawn = draw(student, "any error", 25, drawn)
    assert "14 clips with errors" in listed
    assert draw(student, "any error", 25, drawn) == (unchanged,) * 4


def test_scores_of_a_run_that_goes_on_are_computed_now_and_then(run, monkeypatch):
    computed = []
    scores = run._scores
    monkeypatch.setattr(run, "_scores", lambda rows: computed.append(len(rows)) or scores(rows))
    for _ in range(60):
        written(run, "open the door", "open the door", "open the door")
        for _ in range(3):
            run.summary(0.1)
    assert computed[0] == 5
    assert computed[-1] >= 60 / 1.1
    assert len(computed) < 30
    run.summary()
    assert computed[-1] == 64


def test_an_entry_is_drawn_once(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(table, "aligned_html", lambda row, _: drawn.append(row.number) or "")
    student = run.systems.students[0]
    assert worst_html(run, student, None) == worst_html(run, student, None)
    assert drawn == [2, 3, 0]


def test_a_pause_is_no_end(shared, monkeypatch):
    gate, begun = threading.Event(), threading.Event()
    clips = [Utterance(str(n), b"", "words", 1.0) for n in range(5)]
    run = CorpusRun(shared, clips)

    def waiting(number):
        begun.set()
        assert gate.wait(10)
        raise UserError("this clip has no row")

    monkeypatch.setattr(run, "_row", waiting)
    run.start(5)
    assert begun.wait(10)
    run.stop()
    assert "0 of 5 clips, pausing after this clip" in progress_html(run)
    gate.set()
    until(lambda: not run.running)
    assert "1 of 5 clips, paused" in progress_html(run)
    run.start(3)
    until(lambda: not run.running)
    assert "3 of 3 clips, done" in progress_html(run)
    run.stop()
    assert "3 of 3 clips, done" in progress_html(run)


def test_one_unit_counts_all_clips_of_a_split(shared):
    systems = SimpleNamespace(
        recognizers=shared.recognizers, teacher=shared.teacher, students=shared.students, languages=["en", "zh"]
    )
    clips = [Utterance("a", b"", "open doors", 1.0, "en"), Utterance("b", b"", "你好吗", 1.0, "zh")]
    run = CorpusRun(systems, clips)
    outcomes = {name: Outcome(name, "open", runs=({"encoder": 1.0},)) for name in systems.recognizers}
    found = Comparison(systems.teacher, 1.0, "en", "open doors", 1, outcomes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_run, "compare", lambda *_, **__: [found])
        patch.setattr(Utterance, "wave", lambda _: tone(1.0))
        run.rows.append(run._row(0))
    (entry, _) = run.summary()
    assert (entry["unit"], entry["headline"]) == ("cer", "cer")
    assert entry["cer"] == pytest.approx(100 * sum(entry["kinds"].values()) / len("open doors"))
    assert "counted in characters" in worst_html(run, systems.teacher, None)


@needs_browser
@pytest.mark.slow
def test_whoever_looked_before_the_run_began_sees_it_and_choices_made_meanwhile_stay(shared):
    clips = [u for u in open_corpus("prompts-en", "test") if 1 < u.seconds < 2][:12]
    teacher, student = shared.recognizers
    with served(shared, clips) as url, open_page(url) as (watching, _):
        watching.get_by_role("tab", name="Corpus").click()
        starting = watching.context.browser.new_page()
        starting.goto(url)
        starting.get_by_role("tab", name="Corpus").click()
        starting.click("#corpus-start")
        watching.get_by_text(re.compile(f"clips? with errors of {re.escape(student)}")).wait_for(timeout=60_000)
        watching.click("#corpus-system input")
        watching.get_by_role("option", name=teacher).click()
        of_teacher = re.compile(f"errors of {re.escape(teacher)}")
        watching.get_by_text(of_teacher).wait_for(timeout=60_000)
        watching.get_by_text("12 of 12 clips, done").wait_for(timeout=60_000)
        watching.wait_for_timeout(2000)
        assert of_teacher.search(watching.locator("#corpus-worst").inner_text())
        assert student in starting.locator("#corpus-worst").inner_text()
        asked = []
        watching.on("request", lambda request: asked.append(request.url))
        watching.wait_for_timeout(2500)
        assert asked
        watching.get_by_role("tab", name="A clip").click()
        watching.wait_for_timeout(1500)
        asked.clear()
        watching.wait_for_timeout(2500)
        assert not asked  # only who looks at the tab asks for news


def preferences(student, teacher, wins, losses, undecided=0):
    pair = Pair(0, "a", "en", EVIL, (student, teacher), (EVIL, "b"))
    return [Preference(pair, c) for c, n in (("A", wins), ("B", losses), ("none", undecided)) for _ in range(n)]


def test_preferences_are_counted_with_an_exact_interval():
    found = count(preferences("s", "t", 8, 2, 3), "s", "t")
    assert (found.wins, found.losses, found.undecided) == (8, 2, 3)
    # Clopper and Pearson 1934, for 8 of 10; sign test: 2 * (1 + 10 + 45) / 1024
    assert found.interval == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert found.p == pytest.approx(112 / 1024)
    assert count(preferences("s", "t", 0, 0, 2), "s", "t").interval is None
    assert count(preferences("s", "t", 5, 1), "other", "t").decided == 0


def test_a_pair_does_not_tell_whose_it_is_until_it_is_judged():
    pair = Pair(3, "a", "en", f"reference {EVIL}", ("student-name", "teacher-name"), (f"one {EVIL}", "two"))
    before = pair_html(pair)
    assert "student-name" not in before
    assert "teacher-name" not in before
    assert "reference" not in before
    after = pair_html(pair, Preference(pair, "B"))
    assert "B: teacher-name (preferred)" in after
    assert EVIL not in before + after
    with private_folder(1) as folder:
        shown = counts_html(Judging(preferences("s", "t", 3, 1)), "t")
        assert "75 %" in shown
        (saved,) = folder.glob("*/preferences.json")
        assert saved.read_text().count('"preferred": "s"') == 3


def test_preferences_of_all_visitors_are_appended_to_a_file(run, tmp_path):
    kept = tmp_path / "new" / "preferences.jsonl"
    check_preferences_file(kept)
    with gr.Blocks() as page:
        blind_tab(run, 1, kept)
    events = {one.name: one for one in page.fns.values()}
    student = run.systems.students[0]
    pair = Pair(0, "clip", "en", "a reference", (student, run.systems.teacher), ("one text", "another"))
    for choice in ("A", "none"):
        events["judge"].fn(choice, student, Judging(pair=pair))
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["choice"] for line in lines] == ["A", "none"]
    assert lines[0]["preferred"] == lines[0]["names"][0]
    assert set(lines[0]["names"]) == {student, run.systems.teacher}
    check_preferences_file(kept)  # of an earlier page


@pytest.mark.parametrize("content", ["words\n", '{"choice": "A"}', '{"text": "a"}\n', "[1]\n", "3\n"])
def test_preferences_are_appended_to_no_other_file(content, tmp_path):
    (tmp_path / "file").write_text(content)
    with pytest.raises(UserError, match="holds something else than preferences"):
        check_preferences_file(tmp_path / "file")
    assert (tmp_path / "file").read_text() == content
    with pytest.raises(UserError, match="choose another file"):
        check_preferences_file(tmp_path)


def test_what_was_judged_of_one_student_is_drawn_for_another(run, monkeypatch):
    teacher, student = run.systems.recognizers
    other = "other (int8)"
    for row in run.rows:
        row.comparison.outcomes[other] = Outcome(other, f"{row.clip.text} more", runs=({"encoder": 1.0},))
    run.clips = [row.clip for row in run.rows]
    run.systems = SimpleNamespace(
        recognizers=[teacher, student, other], teacher=teacher, students=[student, other], languages=["en"]
    )
    with gr.Blocks() as page:
        blind_tab(run, 1)
    events = {one.name: one for one in page.fns.values()}
    draw, judge = events["draw"].fn, events["judge"].fn
    judging = Judging()
    for _ in run.rows:
        shown, judging, *_ = draw(student, judging)
        assert "blind" in shown or "<audio" in shown
        judge("A", student, judging)
    assert "No other clip" in draw(student, judging)[0]
    assert judging.judged == {student: {0, 1, 2, 3}}
    draw(other, judging)
    assert judging.pair.names in ((other, teacher), (teacher, other))
    assert judge("A", student, judging)[0] == ""  # it came after another student had been chosen
    assert len(judging.preferences) == 4
    changed = next(one for one in page.fns.values() if "change" in {event for _, event in one.targets})
    cancelled = {n for one in page.fns.values() if one.targets == changed.targets for n in one.cancels}
    assert {page.fns[n].name for n in cancelled} == {"draw"}


def test_only_clips_that_differ_are_drawn_and_in_random_order(run):
    class First:
        def shuffle(self, items):
            items.reverse()

    student, teacher = run.systems.students[0], run.systems.teacher
    run.clips = [row.clip for row in run.rows]
    written(run, "same", "Same.", "same")
    run.clips.append(run.rows[-1].clip)
    judged = set()
    drawn = draw_pair(run, student, judged, First())  # the last first: equal but for its spelling
    assert judged == {4}
    assert (drawn.clip, drawn.names, drawn.texts) == (3, (teacher, student), ("go back home", "go home"))
    assert draw_pair(run, student, {0, 1, 2, 3, 4}, First()) is None
