"""Scores against counts made by hand."""

import pytest

from workbench.scoring import is_loop, most_repeats, normalize, paired_difference, score


def test_normalizer_is_whispers():
    assert normalize("Mr. Park's colour: twenty-five!") == "mister park is color 25"
    assert normalize("¿Qué tal?", "es") == "qué tal"


def test_an_ellipsis_is_no_word():
    assert normalize("To exit the menu...") == normalize("To exit the menu.") == "to exit the menu"
    assert normalize("... for ...") == "for"
    assert normalize("it costs 3.25") == "it costs 3.25"


def test_word_and_character_errors_by_hand():
    found = score(["Good day, sir", "press the pound key"], ["good sir", "press a pound key now"])
    assert (found.substitutions, found.deletions, found.insertions) == (1, 1, 1)
    assert found.wer == pytest.approx(100 * 3 / 7)
    assert found.loops == 0


def test_raw_scores_count_case_and_punctuation():
    assert score(["Thank you."], ["thank you"], normalized=False).wer == 100.0
    assert score(["Thank you."], ["thank you"]).wer == 0.0


def test_empty_texts_do_not_break_scores():
    found = score(["hello", ""], ["", "ghost"])
    assert (found.deletions, found.insertions) == (1, 1)


@pytest.mark.parametrize(
    ("text", "repeats"), [("", 0), ("a", 1), ("a b a b a b", 3), ("go go go go", 4), ("a b c", 1), ("x a b c a b c", 2)]
)
def test_most_repeats(text, repeats):
    assert most_repeats(text.split()) == repeats


def test_a_loop_is_more_than_the_reference_says():
    assert is_loop("press one press one press one press one", "press one")
    assert not is_loop("no no no no", "no no no no")
    assert not is_loop("very very good", "very good")


def test_paired_difference_of_equal_systems_is_zero_and_of_a_better_one_negative():
    references = [f"clip number {i} says this" for i in range(40)]
    worse = [r.replace("this", "that") for r in references]
    assert paired_difference(references, worse, worse) == {"points": 0.0, "ci": [0.0, 0.0]}
    better = paired_difference(references, references, worse)
    assert better["points"] == pytest.approx(-20.0)
    assert better["ci"][1] < 0


def test_interval_holds_the_rate_and_is_reproducible():
    references = ["a b c d"] * 30
    hypotheses = ["a b c d"] * 20 + ["a b c x"] * 10
    first, second = score(references, hypotheses), score(references, hypotheses)
    assert first.wer_ci[0] < first.wer < first.wer_ci[1]
    assert first == second
