"""Scores and normalized texts against counts made by hand."""

import pytest

from workbench.corpus import Utterance
from workbench.evaluation.scoring import (
    FEWEST_CLIPS,
    is_loop,
    most_repeats,
    normalize,
    normalizers_of,
    paired_difference,
    score,
    score_utterances,
)
from workbench.text.normalizers import fold, normalizer_name


def test_english_has_whispers_normalizer():
    assert normalize("Mr. Park's colour: twenty-five!") == "mister park is color 25"
    assert normalize("¿Qué tal?", "es") == "qué tal"


def test_an_ellipsis_is_no_word():
    assert normalize("To exit the menu...") == normalize("To exit the menu.") == "to exit the menu"
    assert normalize("... for ...") == "for"
    assert normalize("it costs 3.25") == "it costs 3.25"


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("en", "don’t", "don't"),
        ("fr", "L’eau", "l'eau"),
        ("it", "un’altra", "un'altra"),
        ("tr", "İstanbul", "istanbul"),
        ("tr", "ISPARTA", "ısparta"),
        ("ar", "كِتَابٌ", "كتاب"),
        ("he", "שָׁלוֹם", "שלום"),
        ("fa", "كتابي", "کتابی"),  # Arabic letters for Persian ones
        ("fa", "می‌خواهم", "می خواهم"),
        ("ml", "അവന്‍", "അവൻ"),  # a chillu in two encodings
        ("hi", "१२ बजे", "12 बजे"),
        ("ru", "ещё", "еще"),
        ("th", "น้ำ", "น้ํา"),  # composed and decomposed
        ("es", "veintidós", "22"),
        ("es", "Marque uno.", "marque 1"),
        ("es", "1.000 mensajes", "mil mensajes"),
        ("fr", "quatre-vingt-dix-neuf", "99"),
        ("it", "prema ventidue", "prema 22"),
        ("de", "einundzwanzig", "21"),
        ("pt", "vinte e dois", "22"),
        ("nl", "tweeëntwintig", "22"),
        ("ru", "двадцать два", "22"),
        ("pl", "sto dwadzieścia dwa", "122"),
        ("en", "♥️ good", "good"),
    ],
)
def test_these_are_the_same(language, one, other):
    assert normalize(one, language) == normalize(other, language) != ""


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("hi", "किताब", "कुताब"),  # vowel signs spell
        ("ml", "കല", "കാല"),
        ("ta", "கல்", "கால்"),
        ("th", "กา", "กี"),
        ("tr", "ılık", "ilik"),
        ("es", "número", "numero"),
        ("es", "año", "ano"),
        ("ru", "мой", "мои"),
        ("de", "schon", "schön"),
    ],
)
def test_these_are_different(language, one, other):
    assert normalize(one, language) != normalize(other, language)


def test_folding_drops_accents_and_keeps_marks_that_spell():
    assert fold(normalize("número año", "es")) == "numero ano"
    assert fold("żółć straße œuvre") == "zolc strasse oeuvre"
    assert fold("किताब") != fold("कुताब")
    found = score(["marque el número"], ["marque el numero"], "es")
    assert (found.wer, found.wer_folded) == (pytest.approx(100 / 3), 0.0)


def test_a_vowel_signs_error_is_counted():
    assert score(["किताब"], ["कुताब"], "hi").wer == 100.0


def test_each_clip_is_scored_in_its_own_language():
    """English spelling rules must not reach Spanish, nor Spanish numbers English."""
    references, hypotheses = ["my favourite colour", "marque veintidós"], ["my favorite color", "marque 22"]
    assert score(references, hypotheses, ["en", "es"]).wer == 0.0
    assert score(references, hypotheses, "en").wer > 0
    assert score(references, hypotheses, "es").wer > 0
    clips = [Utterance("a", b"", references[0], 1.0, "en"), Utterance("b", b"", references[1], 1.0, "es")]
    assert score_utterances(clips, hypotheses).wer == 0.0
    assert paired_difference(references, hypotheses, references, ["en", "es"])["points"] == 0.0
    with pytest.raises(ValueError, match="1 languages for 2 clips"):
        score(references, hypotheses, ["en"])


def test_where_no_spaces_are_written_cer_is_the_headline_and_spaces_do_not_count():
    found = score(["今天天气很好"], ["今天 天气 很坏"], "zh")
    assert found.headline == "cer"
    assert found.cer == pytest.approx(100 / 6)
    assert score(["a b"], ["a b"], "en").headline == "wer"
    assert score(["a", "今天"], ["a", "今天"], ["en", "zh"]).headline == "cer"


def test_normalizers_have_a_name_and_a_version():
    assert normalizers_of(["es", "en", "es"]) == {"en": normalizer_name("en"), "es": normalizer_name("es")}
    assert normalizer_name("es").startswith("basic-es/")
    assert "text2num/" in normalizer_name("es")
    assert normalizer_name("hi").count(" ") == 0  # no library for its numbers


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
    assert paired_difference(references, references, worse, unit="cer")["points"] > -20


def test_fewer_than_twenty_clips_have_no_interval():
    few = ["a b c d"] * (FEWEST_CLIPS - 1)
    assert score(few, few).wer_ci is None
    assert score(few, few).as_dict()["wer_ci"] is None
    assert paired_difference(few, few, ["a b c x"] * len(few)) == {"points": -25.0, "ci": None}
    assert score(["a b c d"] * FEWEST_CLIPS, ["a b c d"] * FEWEST_CLIPS).wer_ci == (0.0, 0.0)


def test_interval_holds_the_rate_and_is_reproducible():
    references = ["a b c d"] * 30
    hypotheses = ["a b c d"] * 20 + ["a b c x"] * 10
    first, second = score(references, hypotheses), score(references, hypotheses)
    assert first.wer_ci[0] < first.wer < first.wer_ci[1]
    assert first == second
