"""A whole split: run once for all, worst clips first, by kind of error, aligned."""

import re

import pytest

from demo.blind.preferences import Pair, Preference, count, draw_pair
from demo.blind.tab import Judging, counts_html, pair_html
from demo.clip.transcribe import Comparison, Outcome
from demo.corpus.run import CorpusRun, Row
from demo.corpus.table import aligned_html, progress_html, summary_html, worst_html
from demo.limits import private_folder
from tests.conftest import tone, until
from workbench.audio.decode import write_wav
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
