"""A reference and what systems wrote of it, word under word."""

from workbench.evaluation.alignment import align
from workbench.evaluation.scoring import clip_errors


def test_words_stand_under_the_words_that_they_are_scored_against():
    columns = align("Press the pound key, please.", ["press a pound key now please", "Press the key please"], "en")
    assert [column.reference for column in columns] == ["press", "the", "pound", "key", "", "please"]
    first, second = ([column.written[i] for column in columns] for i in range(2))
    assert first[1] == ("a", "substitution")
    assert first[4] == ("now", "insertion")
    assert second[2] == ("", "deletion")
    assert second[4] == ("", None)  # the gap is the first one's
    assert [kind for _, kind in second].count(None) == 5


def test_errors_are_as_many_as_are_scored():
    reference, hypothesis = "one two three four five", "zero one two four six five seven"
    kinds = [column.written[0] for column in align(reference, [hypothesis], "en")]
    wrong = sum(len(text.split()) if kind == "insertion" else 1 for text, kind in kinds if kind)
    assert wrong == clip_errors(reference, hypothesis, "en").total


def test_characters_are_aligned_where_words_are_not_separated():
    columns = align("今天 天气很好", ["今天天气很坏"], "zh")
    assert [column.reference for column in columns] == list("今天天气很好")
    assert columns[-1].written == [("坏", "substitution")]


def test_nothing_said_and_nothing_written():
    assert align("", ["hello"], "en")[0].written == [("hello", "insertion")]
    assert align("hello", [""], "en")[0].written == [("", "deletion")]
    assert align("", [""], "en") == []
